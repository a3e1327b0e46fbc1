"""The labels of published sets: rows of value, name and colour (RGB), names and colours as published.

Rows of one name are one class, the first of them gives the value and colour of written masks. `void` is ignored.
"""

Rows = tuple[tuple[int, str, tuple[int, int, int]], ...]

CAMVID: Rows = (
    (0, "sky", (128, 128, 128)),
    (1, "building", (128, 0, 0)),
    (2, "pole", (192, 192, 128)),
    (3, "road", (128, 64, 128)),
    (4, "pavement", (60, 40, 222)),
    (5, "tree", (128, 128, 0)),
    (6, "sign", (192, 128, 128)),
    (7, "fence", (64, 64, 128)),
    (8, "car", (64, 0, 128)),
    (9, "pedestrian", (64, 64, 0)),
    (10, "bicyclist", (0, 128, 192)),
    (11, "void", (0, 0, 0)),
)
"""CamVid in 11 classes, as it came with SegNet."""

CAMVID32: Rows = (
    (0, "sky", (128, 128, 128)),
    (1, "building", (128, 0, 0)),
    (2, "pole", (192, 192, 128)),  # Column_Pole
    (3, "road", (128, 64, 128)),
    (4, "pavement", (0, 0, 192)),  # Sidewalk
    (5, "tree", (128, 128, 0)),
    (6, "sign", (192, 128, 128)),  # SignSymbol
    (7, "fence", (64, 64, 128)),
    (8, "car", (64, 0, 128)),
    (9, "pedestrian", (64, 64, 0)),
    (10, "bicyclist", (0, 128, 192)),
    (11, "void", (0, 0, 0)),
    (12, "building", (192, 0, 128)),  # Archway
    (13, "building", (0, 128, 64)),  # Bridge
    (14, "building", (64, 0, 64)),  # Tunnel
    (15, "building", (64, 192, 0)),  # Wall
    (16, "pole", (0, 0, 64)),  # TrafficCone
    (17, "road", (128, 0, 192)),  # LaneMkgsDriv
    (18, "road", (192, 0, 64)),  # LaneMkgsNonDriv
    (19, "pavement", (64, 192, 128)),  # ParkingBlock
    (20, "pavement", (128, 128, 192)),  # RoadShoulder
    (21, "tree", (192, 192, 0)),  # VegetationMisc
    (22, "sign", (128, 128, 64)),  # Misc_Text
    (23, "sign", (0, 64, 64)),  # TrafficLight
    (24, "car", (64, 128, 192)),  # SUVPickupTruck
    (25, "car", (192, 128, 192)),  # Truck_Bus
    (26, "car", (192, 64, 128)),  # Train
    (27, "car", (128, 64, 64)),  # OtherMoving
    (28, "pedestrian", (192, 128, 64)),  # Child
    (29, "pedestrian", (64, 0, 192)),  # CartLuggagePram
    (30, "pedestrian", (64, 128, 64)),  # Animal
    (31, "bicyclist", (192, 0, 192)),  # MotorcycleScooter
)
"""CamVid as published, in 32 colours, in the 11 classes of `CAMVID` by the usual grouping, which is SegNet's. Published
masks hold colours alone; the values are those of `CAMVID` and then our own."""

CITYSCAPES: Rows = (
    (7, "road", (128, 64, 128)),
    (8, "sidewalk", (244, 35, 232)),
    (11, "building", (70, 70, 70)),
    (12, "wall", (102, 102, 156)),
    (13, "fence", (190, 153, 153)),
    (17, "pole", (153, 153, 153)),
    (19, "traffic light", (250, 170, 30)),
    (20, "traffic sign", (220, 220, 0)),
    (21, "vegetation", (107, 142, 35)),
    (22, "terrain", (152, 251, 152)),
    (23, "sky", (70, 130, 180)),
    (24, "person", (220, 20, 60)),
    (25, "rider", (255, 0, 0)),
    (26, "car", (0, 0, 142)),
    (27, "truck", (0, 0, 70)),
    (28, "bus", (0, 60, 100)),
    (31, "train", (0, 80, 100)),
    (32, "motorcycle", (0, 0, 230)),
    (33, "bicycle", (119, 11, 32)),
    *((value, "void", (value,) * 3) for value in (*range(7), 9, 10, 14, 15, 16, 18, 29, 30, 255)),
)
"""The label ids of Cityscapes in its 19 classes, in the order of their train ids. 255 is the licence plate, -1 in eight
bits. Of the ignored ids several are published as black; a label has a colour of its own, so these are near it."""

VOC: Rows = (
    (0, "background", (0, 0, 0)),
    (1, "aeroplane", (128, 0, 0)),
    (2, "bicycle", (0, 128, 0)),
    (3, "bird", (128, 128, 0)),
    (4, "boat", (0, 0, 128)),
    (5, "bottle", (128, 0, 128)),
    (6, "bus", (0, 128, 128)),
    (7, "car", (128, 128, 128)),
    (8, "cat", (64, 0, 0)),
    (9, "chair", (192, 0, 0)),
    (10, "cow", (64, 128, 0)),
    (11, "diningtable", (192, 128, 0)),
    (12, "dog", (64, 0, 128)),
    (13, "horse", (192, 0, 128)),
    (14, "motorbike", (64, 128, 128)),
    (15, "person", (192, 128, 128)),
    (16, "pottedplant", (0, 64, 0)),
    (17, "sheep", (128, 64, 0)),
    (18, "sofa", (0, 192, 0)),
    (19, "train", (128, 192, 0)),
    (20, "tvmonitor", (0, 64, 128)),
    (255, "void", (224, 224, 192)),
)
"""Pascal VOC: the background, 20 classes, and the border around objects."""

BINARY: Rows = (
    (0, "background", (0, 0, 0)),
    (255, "foreground", (255, 255, 255)),
    (1, "foreground", (1, 1, 1)),
)
"""Masks of 0 and 255, or of 0 and 1."""
