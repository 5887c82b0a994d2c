"""A plentiful finding made rare: what would synthetic images be worth to the tail, told before they are paid for?"""
