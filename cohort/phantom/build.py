"""What makes one chest differ from another: size, sex, age, breathing in, position; lengths in cm.

A ``Build`` is drawn from the patient's seed (what stays) and the exam's (how deeply breathed in, how turned). Findings
that change the shape of the chest (a large heart, a bent spine, flat diaphragms) change the build before it is drawn.

Sizes are those of a middle-sized adult in a posteroanterior radiograph at full inspiration: cardiothoracic ratio .45,
right dome at the tenth posterior rib and 1 to 2 cm above the left (Goodman, *Felson's Principles of Chest
Roentgenology*).
"""

from dataclasses import dataclass, field

import numpy as np

from cohort.phantom.exam import Exam

SIDES = {"left": 1.0, "right": -1.0}
"""The sign of x on the patient's left and right."""


@dataclass(kw_only=True)
class Build:
    """The numbers that the anatomy is drawn from; signs may change them."""

    width: float
    """Scale of the chest from side to side, about 1."""
    height: float
    """Scale from top to bottom, about 1."""
    depth: float
    """Scale from front to back, about 1."""
    fat: float
    """Thickness of the soft tissue outside the ribs, cm."""
    breast: float
    """How far the breasts stand out, cm; 0 for none."""
    bone: float
    """Mineral content of the bones relative to a young adult's, about 1."""
    heart: float
    """Scale of the heart's long and short axis, about 1."""
    apex_drop: float
    """Angle of the heart's long axis below the horizontal, radians."""
    dome: dict[str, float]
    """Height of the diaphragm's dome per side, cm."""
    dome_curve: float = 1.0
    """How arched the domes are; 1 is usual, small is flat."""
    rib_slope: float = 0.5
    """Tangent of the ribs' fall from back to front."""
    mediastinum: float = 2.5
    """Half width of the mediastinum between the lungs, cm."""
    aorta_knob: float = 1.0
    """Scale of the aortic arch."""
    aorta_sway: float = 0.0
    """How far the descending aorta swings to the left, cm."""
    spine_bend: float = 0.0
    """Largest sideways deviation of the spine, cm; positive to the left."""
    spine_height: float = 2.0
    """Where the spine deviates most, cm."""
    hump: float = 0.0
    """Forward bend of the upper spine, radians."""
    stomach: float = 1.0
    """Size of the air in the stomach; 0 for none."""
    lung: dict[str, float] = field(default_factory=lambda: {"left": 1.0, "right": 1.0})
    """Attenuation of each lung relative to a normal one."""
    vessels: float = 1.0
    """Calibre of the lungs' vessels relative to normal ones."""
    turn: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Position in front of the detector: angles about x, y and z, radians."""


def draw_build(exam: Exam) -> Build:
    """The chest of ``exam``'s patient as it stands before this detector, without any finding."""
    person = np.random.default_rng([exam.patient.seed, 11])
    moment = np.random.default_rng([exam.seed, 12])
    female, bedside = exam.patient.sex == "F", exam.view == "AP"
    size = person.normal(0.94 if female else 1.02, 0.035)
    girth = abs(person.normal(0, 1))
    breath = moment.beta(2, 3) if bedside else moment.beta(5, 1.6)  # 1: as deep as possible
    lift = 3.6 * (1 - breath)
    right = -9.0 * size + lift + person.normal(0, 0.4)
    return Build(
        width=size * person.normal(1.0, 0.03), height=size * person.normal(1.0, 0.03),
        depth=size * person.normal(1.0, 0.05) * (1 + 0.002 * max(exam.age - 60, 0)),
        fat=0.9 + 0.9 * girth, breast=max(person.normal(2.6, 1.0) + 0.4 * girth, 0.8) if female else 0.0,
        bone=float(np.clip(person.normal(1.0, 0.08) - 0.004 * max(exam.age - 55, 0), 0.6, 1.2)),
        heart=person.normal(0.97, 0.05) * (1 + 0.05 * (1 - breath)),
        apex_drop=person.normal(0.65, 0.1) - 0.2 * (1 - breath),
        dome={"right": right, "left": right - abs(person.normal(1.2, 0.5))}, dome_curve=person.normal(1.0, 0.07),
        rib_slope=person.normal(0.5, 0.05) - 0.14 * (1 - breath),
        mediastinum=person.normal(2.5, 0.15) + 0.3 * (1 - breath),
        aorta_knob=person.normal(0.9, 0.08) + 0.004 * max(exam.age - 40, 0), spine_bend=person.normal(0, 0.12),
        stomach=float(person.random() < 0.75) * moment.uniform(0.5, 1.2), vessels=person.normal(1.0, 0.08),
        turn=(moment.normal(0.10 if bedside else 0.0, 0.04), moment.normal(0, 0.05 if bedside else 0.025),
              moment.normal(0, 0.03 if bedside else 0.012)),
    )
