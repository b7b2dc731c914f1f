"""Our own rooms: what stands in them, what may lie where.

Names are those of the logic that the package `alfworld` ships, which knows 30 kinds of receptacles
and some 60 of things; things cut into slices are left out (the logic cannot make them).
"""

from __future__ import annotations

from typing import NamedTuple

OPENABLE = frozenset("Cabinet Drawer Fridge Microwave Safe".split())
CLEANABLE = frozenset(
    "Apple Bowl ButterKnife Cloth Cup DishSponge Egg Fork Kettle Knife Ladle Lettuce Mug Pan Plate "
    "Pot Potato SoapBar Spatula Spoon Tomato".split()
)
HEATABLE = frozenset("Apple Bread Cup Egg Mug Plate Potato Tomato".split())
COOLABLE = frozenset(
    "Apple Bowl Bread Cup Egg Lettuce Mug Pan Plate Pot Potato Tomato WineBottle".split()
)
LAMP = "DeskLamp"
LAMP_ROOMS = ("bedroom", "living room")


class Layout(NamedTuple):
    """A room."""

    name: str
    kind: str  # kitchen, bedroom, living room or bathroom
    counts: dict[str, int]  # receptacle type -> how many


# Where things are found, likely places first. An expert searches in this order.
LIKELY: dict[str, tuple[str, ...]] = {
    thing: tuple(places.split())
    for thing, places in {
        # the kitchen's
        "Apple": "CounterTop DiningTable Fridge SideTable GarbageCan Microwave SinkBasin",
        "Bread": "CounterTop DiningTable Fridge SideTable",
        "Bowl": "CounterTop DiningTable Fridge Cabinet Shelf SinkBasin Microwave Dresser Desk",
        "ButterKnife": "CounterTop DiningTable Drawer SinkBasin",
        "Cup": "CounterTop Fridge DiningTable Cabinet SinkBasin Microwave Shelf",
        "DishSponge": "CounterTop SinkBasin DiningTable Cabinet Drawer Shelf GarbageCan",
        "Egg": "Fridge CounterTop SinkBasin GarbageCan DiningTable Microwave",
        "Fork": "CounterTop DiningTable Drawer SinkBasin",
        "Glassbottle": "CounterTop DiningTable Cabinet Fridge SinkBasin Shelf",
        "Kettle": "StoveBurner CounterTop DiningTable Cabinet",
        "Knife": "CounterTop DiningTable Drawer SinkBasin",
        "Ladle": "CounterTop DiningTable Cabinet Drawer SinkBasin",
        "Lettuce": "CounterTop DiningTable Fridge SinkBasin GarbageCan",
        "Mug": "CoffeeMachine CounterTop Desk Fridge DiningTable Cabinet Shelf SinkBasin "
        "Microwave SideTable Dresser",
        "Pan": "StoveBurner CounterTop Fridge DiningTable Cabinet",
        "PepperShaker": "CounterTop DiningTable Cabinet Drawer Shelf SideTable",
        "Plate": "CounterTop DiningTable Cabinet Fridge Shelf SinkBasin CoffeeTable",
        "Pot": "StoveBurner CounterTop Fridge DiningTable Cabinet",
        "Potato": "CounterTop Fridge DiningTable SinkBasin GarbageCan Microwave",
        "SaltShaker": "CounterTop DiningTable Cabinet Drawer Shelf SideTable",
        "Spatula": "CounterTop DiningTable Drawer SinkBasin",
        "Spoon": "CounterTop DiningTable Drawer SinkBasin",
        "Tomato": "CounterTop Fridge DiningTable GarbageCan SinkBasin SideTable",
        "WineBottle": "CounterTop DiningTable Cabinet Fridge Shelf GarbageCan",
        # the bathroom's
        "Candle": "CounterTop Toilet Shelf SideTable CoffeeTable Drawer Cabinet Cart",
        "Cloth": "BathtubBasin CounterTop SinkBasin Shelf Cabinet Drawer Toilet Cart",
        "HandTowel": "HandTowelHolder CounterTop",
        "PaperTowelRoll": "CounterTop DiningTable Shelf GarbageCan Toilet",
        "SoapBar": "SinkBasin CounterTop Toilet BathtubBasin Cabinet Drawer GarbageCan Shelf",
        "SoapBottle": "CounterTop Toilet GarbageCan DiningTable Shelf Cabinet Drawer Cart",
        "SprayBottle": "CounterTop Toilet GarbageCan Shelf Cabinet Cart Drawer",
        "TissueBox": "CoffeeTable Shelf CounterTop SideTable DiningTable Desk Dresser Drawer "
        "Cabinet",
        "ToiletPaper": "ToiletPaperHanger Toilet CounterTop Shelf Cabinet Drawer GarbageCan Cart",
        "Towel": "TowelHolder",
        # those of the bedroom and of the living room
        "AlarmClock": "SideTable Desk Dresser Shelf DiningTable",
        "BaseballBat": "Bed",
        "BasketBall": "Bed Dresser Sofa ArmChair Desk",
        "Book": "Bed Desk SideTable Dresser CoffeeTable Sofa Shelf Drawer Cabinet DiningTable "
        "CounterTop",
        "Box": "Sofa CoffeeTable DiningTable ArmChair SideTable Desk Dresser Shelf Cabinet",
        "CD": "Desk SideTable Dresser Shelf GarbageCan DiningTable Drawer Cabinet Safe",
        "CellPhone": "Bed Desk SideTable Dresser Shelf CoffeeTable Sofa ArmChair DiningTable "
        "Drawer Safe CounterTop",
        "CreditCard": "SideTable Desk Dresser Sofa ArmChair CoffeeTable Shelf DiningTable "
        "Drawer CounterTop",
        "DeskLamp": "SideTable Desk Dresser Shelf CoffeeTable",
        "FloorLamp": "SideTable Desk Dresser Shelf CoffeeTable",
        "KeyChain": "SideTable Desk Dresser CoffeeTable Shelf DiningTable ArmChair Sofa Ottoman "
        "Drawer Safe",
        "Laptop": "Bed Desk Sofa CoffeeTable DiningTable Dresser ArmChair SideTable",
        "Newspaper": "CoffeeTable Sofa DiningTable SideTable ArmChair Shelf Dresser Ottoman "
        "Drawer",
        "Pen": "Desk SideTable Dresser Shelf DiningTable CoffeeTable CounterTop GarbageCan Drawer",
        "Pencil": "Desk SideTable Shelf Dresser DiningTable CoffeeTable CounterTop GarbageCan "
        "Drawer",
        "Pillow": "Bed Sofa ArmChair Ottoman",
        "RemoteControl": "CoffeeTable Sofa SideTable DiningTable ArmChair Dresser Ottoman Desk "
        "Drawer",
        "Statue": "Shelf CoffeeTable SideTable DiningTable CounterTop Dresser Desk Safe",
        "TennisRacket": "Dresser Desk",
        "Vase": "Shelf CoffeeTable DiningTable SideTable CounterTop Dresser Desk Cabinet Safe",
        "Watch": "CoffeeTable SideTable Dresser DiningTable Shelf Desk Drawer Safe",
        "WateringCan": "CoffeeTable Shelf SideTable",
    }.items()
}  # fmt: skip

THINGS: dict[str, tuple[str, ...]] = {
    kind: tuple(things.split())
    for kind, things in {
        "kitchen": "Apple Bread Bowl ButterKnife Cup DishSponge Egg Fork Glassbottle Kettle Knife "
        "Ladle Lettuce Mug Pan PepperShaker Plate Pot Potato SaltShaker SoapBottle Spatula Spoon "
        "Tomato WineBottle",
        "bathroom": "Candle Cloth DishSponge HandTowel SoapBar SoapBottle SprayBottle TissueBox "
        "ToiletPaper Towel",
        "bedroom": "AlarmClock BaseballBat BasketBall Book Bowl CD CellPhone CreditCard KeyChain "
        "Laptop Mug Pen Pencil Pillow TissueBox Vase Watch",
        "living room": "Book Box CreditCard KeyChain Laptop Newspaper Pen Pencil Pillow Plate "
        "RemoteControl Statue TissueBox Vase Watch WateringCan",
    }.items()
}


def layouts(unseen: bool) -> list[Layout]:
    """The rooms of train and L0, or those of L1 and L2 (`unseen`)."""
    lines = (_UNSEEN if unseen else _TRAIN).strip().splitlines()
    out = []
    for line in lines:
        name, kind, receptacles = (part.strip() for part in line.split("|"))
        counts = {}
        for word in receptacles.split():
            receptacle, _, number = word.partition("*")
            counts[receptacle] = int(number or 1)
        out.append(Layout(name, kind, counts))
    return out


_TRAIN = """
k1 | kitchen | CounterTop*2 Cabinet*3 Drawer*2 Fridge Microwave SinkBasin StoveBurner GarbageCan
k2 | kitchen | CounterTop DiningTable Cabinet*2 Drawer*3 Fridge Microwave SinkBasin CoffeeMachine
k3 | kitchen | CounterTop*3 Cabinet*4 Fridge Microwave SinkBasin StoveBurner*2 Toaster GarbageCan
k4 | kitchen | CounterTop DiningTable Shelf*2 Cabinet*2 Fridge Microwave SinkBasin StoveBurner
k5 | kitchen | CounterTop*2 Cabinet*2 Drawer Fridge Microwave SinkBasin CoffeeMachine GarbageCan
k6 | kitchen | CounterTop DiningTable Cabinet*4 Drawer Fridge Microwave SinkBasin StoveBurner
k7 | kitchen | CounterTop*2 DiningTable Drawer*4 Shelf Fridge Microwave SinkBasin GarbageCan
b1 | bedroom | Bed Desk Drawer*3 SideTable Shelf*2 GarbageCan
b2 | bedroom | Bed Dresser Drawer*2 SideTable*2 Shelf Safe
b3 | bedroom | Bed Desk Dresser Drawer*4 Shelf GarbageCan
b4 | bedroom | Bed Desk SideTable*2 Shelf*3 LaundryHamper Drawer
b5 | bedroom | Bed Dresser Desk SideTable ArmChair Safe Drawer*2
l1 | living room | Sofa ArmChair CoffeeTable SideTable TVStand Shelf*2 GarbageCan
l2 | living room | Sofa CoffeeTable DiningTable SideTable*2 Drawer*3
l3 | living room | Sofa ArmChair*2 CoffeeTable Dresser Cabinet*2 GarbageCan
l4 | living room | Sofa Ottoman CoffeeTable SideTable Shelf*3 Drawer TVStand
t1 | bathroom | CounterTop SinkBasin*2 Toilet Cabinet*3 BathtubBasin ToiletPaperHanger GarbageCan
t2 | bathroom | SinkBasin Toilet Drawer*3 CounterTop BathtubBasin HandTowelHolder TowelHolder
t3 | bathroom | SinkBasin Toilet Shelf*2 Cabinet*2 Cart ToiletPaperHanger GarbageCan
t4 | bathroom | CounterTop SinkBasin Toilet Drawer*2 Cabinet HandTowelHolder*2 GarbageCan
"""

_UNSEEN = """
k8 | kitchen | CounterTop*2 DiningTable Cabinet*3 Drawer*2 Fridge Microwave SinkBasin CoffeeMachine
k9 | kitchen | CounterTop Shelf*3 Cabinet*2 Drawer Fridge Microwave SinkBasin StoveBurner*2
k10 | kitchen | CounterTop*2 SideTable Drawer*3 Fridge Microwave SinkBasin GarbageCan Cabinet
b6 | bedroom | Bed Desk*2 Drawer*2 SideTable Shelf GarbageCan
b7 | bedroom | Bed Dresser SideTable Shelf*2 Drawer*3 ArmChair
l5 | living room | Sofa*2 CoffeeTable SideTable DiningTable Drawer*2 Shelf
l6 | living room | Sofa ArmChair Ottoman CoffeeTable Dresser SideTable Drawer GarbageCan
t5 | bathroom | CounterTop SinkBasin Toilet Cabinet*2 Shelf BathtubBasin TowelHolder GarbageCan
t6 | bathroom | SinkBasin*2 Toilet Drawer*2 Cart CounterTop ToiletPaperHanger HandTowelHolder
"""
