"""The worlds of iGSM: four layers of categories each, with sub-categories and names.

The shape is that of arXiv:2407.20311; the words are our own. No name occurs twice, none is a
category, and none contains a word that joins the parts of a sentence, so that every sentence can be
read back in one way only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class World:
    """Four or fewer layers of things: each thing of a layer holds things of the next.

    Attributes:
        layers: category of each layer to its sub-categories, and these to their names; outermost
            layer first.
    """

    layers: Mapping[str, Mapping[str, tuple[str, ...]]]

    @cached_property
    def categories(self) -> tuple[str, ...]:
        """The categories, outermost first."""
        return tuple(self.layers)

    @cached_property
    def groups(self) -> tuple[tuple[tuple[str, ...], ...], ...]:
        """Names of each sub-category of each layer, in alphabetical order."""
        groups: list[tuple[tuple[str, ...], ...]] = []
        for subcategories in self.layers.values():
            names = map(sorted, subcategories.values())
            groups.append(tuple(map(tuple, names)))
        return tuple(groups)

    @cached_property
    def layer_of(self) -> dict[str, int]:
        """Layer of every name, counted from 0."""
        layers: dict[str, int] = {}
        for layer, groups in enumerate(self.groups):
            for names in groups:
                layers.update(dict.fromkeys(names, layer))
        return layers


WORLDS = (
    World(
        {
            "Port": {
                "river port": (
                    "Amber Quay",
                    "Birch Wharf",
                    "Copper Dock",
                    "Lantern Pier",
                    "Willow Landing",
                ),
                "sea port": (
                    "Gull Haven",
                    "Northwind Harbour",
                    "Oyster Bay",
                    "Seal Point",
                    "Storm Basin",
                ),
                "canal port": ("Brickyard Lock", "Heron Cut", "Miller Basin", "Tannery Reach"),
            },
            "Ship": {
                "sailing ship": (
                    "Blue Schooner",
                    "Grey Ketch",
                    "Racing Sloop",
                    "Tall Brig",
                    "White Cutter",
                ),
                "motor ship": (
                    "Cargo Steamer",
                    "Coastal Tanker",
                    "Harbour Tug",
                    "Night Ferry",
                    "Pilot Launch",
                ),
                "fishing ship": ("Crab Boat", "Deep Trawler", "Herring Drifter", "Longliner"),
            },
            "Cabin": {
                "crew cabin": (
                    "Bosun Cabin",
                    "Cook Cabin",
                    "Mate Cabin",
                    "Stoker Cabin",
                    "Surgeon Cabin",
                ),
                "guest cabin": (
                    "Garden Suite",
                    "Lower Berth",
                    "Mirror Suite",
                    "Porthole Room",
                    "Upper Berth",
                ),
                "work cabin": ("Chart Room", "Rope Locker", "Sail Loft", "Wireless Room"),
            },
            "Instrument": {
                "for the sky": (
                    "Brass Sextant",
                    "Moon Dial",
                    "Spyglass",
                    "Star Globe",
                    "Sun Compass",
                ),
                "for the weather": (
                    "Barometer",
                    "Hygrometer",
                    "Rain Gauge",
                    "Wind Cup",
                    "Weather Glass",
                ),
                "for music": ("Accordion", "Banjo", "Fiddle", "Tin Whistle"),
            },
        }
    ),
    World(
        {
            "Farm": {
                "hill farm": (
                    "Badger Hill",
                    "Clover Ridge",
                    "Foxglove Height",
                    "Gorse Slope",
                    "Juniper Knoll",
                ),
                "valley farm": (
                    "Alder Meadow",
                    "Brook Hollow",
                    "Marsh End",
                    "Otter Valley",
                    "Rush Bottom",
                ),
                "lake farm": ("Duckweed Shore", "Pike Water", "Reed Island", "Swan Mere"),
            },
            "Barn": {
                "old barn": ("Cobble Barn", "Ivy Barn", "Slate Barn", "Thatch Barn", "Timber Barn"),
                "new barn": ("Arched Shed", "Glass Shed", "Red Shed", "Solar Shed", "Steel Shed"),
                "store": ("Apple Loft", "Grain Tower", "Hay Loft", "Root Cellar"),
            },
            "Crate": {
                "wooden crate": (
                    "Ash Crate",
                    "Cedar Crate",
                    "Larch Crate",
                    "Oak Crate",
                    "Pine Crate",
                ),
                "woven crate": (
                    "Hazel Basket",
                    "Rattan Basket",
                    "Reed Basket",
                    "Straw Hamper",
                    "Wicker Hamper",
                ),
                "metal crate": ("Iron Bin", "Tin Pail", "Wire Cage", "Zinc Tub"),
            },
            "Vegetable": {
                "root": ("Beetroot", "Carrot", "Parsnip", "Radish", "Turnip"),
                "leaf": ("Chard", "Endive", "Kale", "Lettuce", "Spinach"),
                "fruit vegetable": ("Aubergine", "Cucumber", "Pumpkin", "Tomato"),
            },
        }
    ),
    World(
        {
            "Museum": {
                "city museum": (
                    "Bridge Museum",
                    "Clock Museum",
                    "Market Museum",
                    "Tram Museum",
                    "Town Museum",
                ),
                "art museum": (
                    "Indigo Gallery",
                    "Marble Gallery",
                    "Ochre Gallery",
                    "Paper Gallery",
                    "Velvet Gallery",
                ),
                "nature museum": (
                    "Cave Museum",
                    "Forest Museum",
                    "Glacier Museum",
                    "Volcano Museum",
                ),
            },
            "Hall": {
                "wing": ("Dome Hall", "East Hall", "Fountain Hall", "North Hall", "Pillar Hall"),
                "floor": (
                    "Attic Room",
                    "Balcony Room",
                    "Cellar Room",
                    "Mezzanine Room",
                    "Tower Room",
                ),
                "annexe": ("Courtyard Pavilion", "Orangery", "Rose Pavilion", "Stable Pavilion"),
            },
            "Showcase": {
                "glass case": (
                    "Bell Jar",
                    "Corner Vitrine",
                    "Domed Case",
                    "Long Vitrine",
                    "Wall Case",
                ),
                "table": ("Drawer Table", "Flat Table", "Lit Table", "Round Table", "Sloped Table"),
                "stand": ("Easel Stand", "Plinth", "Rotating Stand", "Tripod Stand"),
            },
            "Exhibit": {
                "from the ground": (
                    "Ammonite",
                    "Fossil Fern",
                    "Garnet",
                    "Meteorite",
                    "Quartz Geode",
                ),
                "from the workshop": (
                    "Bronze Key",
                    "Clay Lamp",
                    "Ivory Comb",
                    "Pewter Cup",
                    "Silver Thimble",
                ),
                "from the archive": ("Atlas Page", "Glass Negative", "Sealed Letter", "Woodcut"),
            },
        }
    ),
    World(
        {
            "Station": {
                "mountain station": (
                    "Cliffside Halt",
                    "Eagle Pass",
                    "Granite Halt",
                    "Snowline Stop",
                    "Tunnel Mouth",
                ),
                "town station": (
                    "Brewery Road",
                    "Castle Street",
                    "Linden Square",
                    "Mill Lane",
                    "Park Gate",
                ),
                "plain station": (
                    "Barley Cross",
                    "Poplar Junction",
                    "Sunflower Halt",
                    "Windmill Stop",
                ),
            },
            "Train": {
                "fast train": (
                    "Comet Express",
                    "Dawn Express",
                    "Falcon Express",
                    "Meteor Express",
                    "Swift Express",
                ),
                "slow train": (
                    "Branch Local",
                    "Evening Local",
                    "Harvest Local",
                    "Lake Local",
                    "Mail Local",
                ),
                "goods train": ("Gravel Freight", "Lumber Freight", "Milk Freight", "Salt Freight"),
            },
            "Wagon": {
                "passenger wagon": (
                    "Dining Car",
                    "Lounge Car",
                    "Observation Car",
                    "Saloon Car",
                    "Sleeping Car",
                ),
                "goods wagon": (
                    "Box Wagon",
                    "Covered Wagon",
                    "Flat Wagon",
                    "Hopper Wagon",
                    "Van Wagon",
                ),
                "service wagon": ("Brake Van", "Crane Wagon", "Post Wagon", "Tool Van"),
            },
            "Parcel": {
                "small parcel": (
                    "Book Packet",
                    "Seed Packet",
                    "Spice Packet",
                    "Tea Packet",
                    "Toy Packet",
                ),
                "large parcel": (
                    "Bicycle Box",
                    "Carpet Roll",
                    "Lamp Box",
                    "Mirror Box",
                    "Piano Box",
                ),
                "odd parcel": ("Bird Cage", "Hat Box", "Umbrella Tube", "Violin Case"),
            },
        }
    ),
)
CATEGORIES: frozenset[str] = frozenset().union(*(world.layers for world in WORLDS))


def names() -> list[str]:
    """Every name and category of every world."""
    words: list[str] = []
    for world in WORLDS:
        words += world.categories
        words += world.layer_of
    return words
