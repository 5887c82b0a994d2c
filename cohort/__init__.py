"""Who: the real images. One table whatever dataset they came from, and the contract that every stage shares.

Imports nothing from the other packages. Data runs ``cohort -> prompts -> synth -> classify``.
"""
