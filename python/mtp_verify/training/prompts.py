"""Prompts for self-distillation: templates times topics, written for this project.

Some topics are held out: text on them is never trained on and measures acceptance. Many topics
matter more than long text on a few: a head soon knows its text by heart.
"""

from __future__ import annotations

import random

__all__ = ["HELD_OUT", "TEMPLATES", "TOPICS", "make_prompts"]

TEMPLATES = (
    "Explain {} to a ten-year-old.",
    "Write a short story about {}.",
    "List five interesting facts about {}.",
    "What are the advantages and disadvantages of {}?",
    "Give me step-by-step advice for a beginner who is interested in {}.",
    "Write a short poem about {}.",
    "How did {} change over the last hundred years?",
    "Write an email to a colleague in which you suggest a talk about {}.",
    "Summarise what most people know about {} in three sentences.",
    "Describe {} to somebody who has never heard of it.",
    "Write a dialogue between two friends who disagree about {}.",
    "What would the world be like without {}?",
    "What are common mistakes that people make about {}?",
    "Write the opening paragraph of a newspaper article about {}.",
    "Compare {} with something similar, and say which you prefer.",
    "Write a Python function that has to do with {}, and explain it.",
    "Make a plan for a one-hour school lesson about {}.",
    "Which questions should I ask an expert on {}?",
    "Write a product description for a book about {}.",
    "Why do some people love {}, and why do others not care?",
    "Give three examples from daily life that involve {}.",
    "Write a diary entry of a person whose work is connected with {}.",
    "What tools or materials does one need for {}?",
    "Tell me about the history of {}.",
    "Write a table that lists four aspects of {} with a short note on each.",
    "What could {} look like in fifty years?",
    "Write a quiz with three questions and answers about {}.",
    "How can I save money when it comes to {}?",
    "Write a motivational speech that uses {} as its example.",
    "Define the most important words one needs to talk about {}.",
    "I have to decide whether to spend my weekend on {}. Help me to decide.",
    "Write a letter to the city council about {}.",
    'Translate into French: "I would like to learn more about {}."',
    'Translate this sentence into Spanish and into German: "My sister wrote a book about '
    '{} last year."',
    'Read the note and answer the question. Note: "On 12 May, Anna and Tom met at the '
    'station. They talked about {} until ten." Question: Who talked, and about what?',
    'Take the names and dates out of this text: "Peter Novak opened his shop for {} on 3 '
    'March 2011; Maria Lind joined him in 2015."',
    'Turn this into JSON with the keys "title", "author" and "year": All About {}, by '
    "Jane Hill, printed in 1998.",
    "A club for {} has 24 members. Each pays 15 euros a year, and the hall costs 210 "
    "euros. How much money is left? Show your steps.",
    "If three books about {} cost 27 euros, how much do seven cost? Explain your calculation.",
    'Rewrite this in a friendly and formal style: "hey, wanna hear something about {}? '
    'come over at 8"',
    'Correct the mistakes in this sentence: "Me and him was talking about {} when the '
    'phone ringed."',
    'Complete this Python class with two useful methods.\n\nclass Collection:\n    """Keeps '
    'notes about {}."""\n\n    def __init__(self):\n        self.notes = []',
    "Write a JavaScript function that counts how often the words of a list about {} occur "
    "in a text.",
    "Write a SQL table and two queries for a shop that sells things to do with {}.",
    "You are a museum guide. Welcome a group of visitors to the exhibition on {}.",
    "You are a detective. Tell me about the case in which {} gave you the decisive clue.",
    'Is this review positive or negative, and why? "I bought a course on {}. The teacher '
    'was late, but I learned a lot."',
    "Give ten words that have to do with {}, in alphabetical order.",
    "Write a haiku and a limerick about {}.",
    "Write five headlines for an article about {}.",
    "What is the difference between a beginner and an expert in {}?",
    "Explain cause and effect: what happens if nobody takes care of {}?",
    'Summarise this in one sentence: "Many people like {}. Some like it because their '
    "parents did, others because it is cheap, and a few because it is good for their "
    'health. Whatever the reason, there are more of them every year."',
    "Which of these does not belong, and why: {}, arithmetic, thunder?",
    'Finish this story: "When she opened the door, all she could see was a picture of {}."',
    "Make a shopping list and a schedule for a day that is all about {}.",
    "What does science say about {}? Name two open questions.",
    "Give arguments for and against teaching {} at school, and then your own opinion.",
    "Describe a photograph of {} so that somebody who cannot see it can imagine it.",
    "Write a conversation in which a shop assistant helps a customer who asks for "
    "something to do with {}.",
)

TOPICS = (
    "rainwater tanks", "old railway lines", "bread baking", "chess openings", "lighthouses",
    "solar panels", "beekeeping", "public libraries", "long-distance running", "sailing boats",
    "mountain huts", "paper folding", "street markets", "sorting algorithms", "night trains",
    "vegetable gardens", "puppet theatre", "volcanoes", "bicycle repair", "folk music",
    "deserts", "photography", "river ferries", "herbal tea", "model aeroplanes",
    "fractions", "ocean currents", "handwriting", "wind turbines", "jigsaw puzzles",
    "dinosaurs", "the water cycle", "city parks", "knitting", "spreadsheets",
    "migrating birds", "canal locks", "prime numbers", "coral reefs", "board games",
    "glass blowing", "learning a language", "castles", "weather forecasts", "rock climbing",
    "recycling", "clock making", "orchards", "snow shovels", "robots in factories",
    "traffic lights", "the moon", "cheese", "swimming lessons", "postage stamps",
    "password safety", "earthquakes", "wooden furniture", "choirs", "electric cars",
    "magnets", "soup", "family budgets", "tents", "fire brigades",
    "crossword puzzles", "soil", "dance classes", "museums", "bridges",
    "small islands", "the alphabet", "whales", "carpentry", "job interviews",
    "butterflies", "morning routines", "compost", "radio stations", "maps",
    "lost luggage", "ice cream", "linked lists", "neighbours", "stage lighting",
    "the human heart", "windmills", "origins of money", "picnics", "shadow plays",
    "tree houses", "home insulation", "school uniforms", "goats", "public speaking",
    "telescopes", "winter sports", "barter", "typewriters",
    "ant colonies", "apple trees", "aquariums", "archery", "atoms", "autumn leaves", "badminton",
    "balloons", "bamboo", "banks", "barn owls", "batteries", "beaches", "bean soup", "bears",
    "binary search", "bird houses", "birthdays", "black holes", "blood pressure", "board meetings",
    "boats made of paper", "bookshops", "botanical gardens", "brass bands", "breakfast",
    "brick walls", "bus stops", "cacao", "calendars", "camels", "campfires", "candles",
    "canoe trips", "car sharing", "card tricks", "carnivals", "cats", "caves", "cellars",
    "ceramics", "chalk", "charity runs", "chemistry sets", "cherry blossom", "children's books",
    "chimneys", "cinemas", "classical guitar", "clay pots", "climate change", "clouds",
    "coal mines", "coastlines", "coffee", "coins", "cold showers", "comets", "comic strips",
    "computer viruses", "concrete", "cooking for friends", "copper", "corn fields", "cotton",
    "country roads", "crabs", "crickets", "cross-country skiing", "cucumbers", "curtains",
    "customer service", "cycle paths", "dams", "databases", "deadlines", "decimal numbers", "deer",
    "dentists", "detective novels", "dictionaries", "digital cameras", "dogs", "doors",
    "dragonflies", "drawing portraits", "dreams", "driving lessons", "drums", "dry stone walls",
    "dust", "ears", "eclipses", "eggs", "elections", "elevators", "email", "embroidery",
    "emergency exits", "emperors", "engines", "envelopes", "equations", "evening classes", "exams",
    "eyeglasses", "fables", "fairs", "falcons", "family trees", "farm shops", "fashion", "ferns",
    "fireworks", "first aid", "fishing nets", "flags", "flea markets", "flour mills", "flutes",
    "fog", "folding bicycles", "footpaths", "forests", "fossils", "fountains", "foxes",
    "friendship", "frogs", "frost", "fruit salad", "functions", "fungi", "furniture", "garages",
    "garden tools", "geese", "geometry", "glaciers", "gloves", "glue", "gold", "graph theory",
    "grandparents", "grapes", "grass", "gravity", "greenhouses", "hailstones", "hair", "hallways",
    "hammers", "hammocks", "harbours", "harvests", "hash tables", "hats", "hedgehogs",
    "hiking boots", "holidays by train", "honesty", "honey", "horses", "hospitals", "hot springs",
    "housework", "humour", "hurricanes", "ice skating", "igloos", "illustrations", "inflation",
    "ink", "insects", "insulation", "insurance", "interviews with artists", "inventions",
    "irrigation", "islands in winter", "jackets", "jam", "jazz", "jellyfish", "jokes",
    "journalism", "juggling", "kayaks", "ketchup", "keyboards", "kindergartens", "kitchens",
    "kites", "knots", "labyrinths", "lakes", "landslides", "lanterns", "laundry", "law courts",
    "leather", "lemons", "letters", "lightning", "lions", "local history", "locks and keys",
    "logic puzzles", "loops in programs", "lunch breaks", "machine learning", "magazines",
    "mail carriers", "mammoths", "marathons", "marble", "marmalade", "measuring tapes",
    "medicine cabinets", "memory", "metals", "meteorites", "microscopes", "milk", "mirrors",
    "mobile phones", "monasteries", "mosaics", "moss", "moths", "motorways", "mountains",
    "mouse traps", "mushrooms", "music lessons", "mustard", "myths", "negative numbers", "nests",
    "newspapers", "noise", "noodles", "notebooks", "novels", "numbers", "nurses", "nuts",
    "oak trees", "oases", "oats", "octopuses", "offices", "oil paintings", "olive oil", "onions",
    "open-air theatre", "opera", "optical illusions", "oranges", "orchestras", "origami", "otters",
    "ovens", "oxygen", "painting a room", "palaces", "pancakes", "parachutes", "parrots",
    "passports", "patience", "peace treaties", "pears", "pencils", "penguins", "pepper",
    "percentages", "perfume", "pets", "pharmacies", "pianos", "pigeons", "pillows", "pine cones",
    "pirates", "pizza", "planets", "plastic bottles", "playgrounds", "plumbing", "poetry",
    "poison ivy", "polar expeditions", "police work", "ponds", "pottery", "potatoes", "power cuts",
    "printing", "prisms", "probability", "proverbs", "pumpkins", "puppies", "pyramids", "quartz",
    "queues", "quilts", "rabbits", "race cars", "radar", "raincoats", "rainbows", "rare stamps",
    "raspberries", "ravens", "recipes from grandma", "recursion", "refrigerators",
    "regular expressions", "renting a flat", "restaurants", "rice", "rivers", "road signs",
    "robins", "rockets", "roofs", "roses", "rowing", "rubber", "rugby", "rugs", "rulers",
    "runners' knees", "saddles", "sailors", "salads", "salt", "sand castles", "sandwiches",
    "satellites", "sauces", "saunas", "savings", "saxophones", "scales", "school trips",
    "scissors", "screws", "sculptures", "sea salt", "seahorses", "seasons", "seeds",
    "self-defence", "sentences", "sewing machines", "shadows", "sharks", "sheep", "shelves",
    "ships in bottles", "shoes", "shopping lists", "silence", "silk", "silver", "singing",
    "skyscrapers", "sleep", "sleds", "slow cooking", "small talk", "snails", "snowflakes", "soap",
    "soccer", "socks", "sound", "spices", "spiders", "spinach", "sponges", "squirrels",
    "stained glass", "stairs", "statistics", "steam engines", "stone circles", "storms",
    "strawberries", "street art", "string instruments", "study groups", "submarines", "subtitles",
    "sugar", "suitcases", "sunflowers", "sunlight", "supermarkets", "surfing", "swans", "swords",
    "table manners", "table tennis", "tailors", "taxes", "taxis", "tea ceremonies", "team work",
    "teeth", "temples", "tennis", "theorems", "thunder", "tides", "tigers", "time zones",
    "tin cans", "toasters", "tomatoes", "tools", "tooth brushes", "tornadoes", "tortoises",
    "tourism", "towers", "town halls", "toys", "tractors", "trading cards", "trains",
    "trampolines", "translation", "treasure hunts", "triangles", "trumpets", "tulips", "tunnels",
    "turtles", "umbrellas", "underground trains", "uniforms", "unit tests", "urban farming",
    "vaccines", "valleys", "vanilla", "vegetarian food", "vending machines", "villages", "vinegar",
    "violins", "vitamins", "volleyball", "volunteers", "waiters", "walking sticks", "walls",
    "walnuts", "washing machines", "waste", "watches", "waterfalls", "watermelons", "wax",
    "weddings", "weeds", "wells", "wheat", "wheelchairs", "whistles", "wild boars", "windows",
    "wine", "wolves", "wool", "work from home", "workshops", "worms", "wrestling", "writing code",
    "x-rays", "yoga", "yoghurt", "zebras",
)  # fmt: skip

HELD_OUT = TOPICS[4:99:5]


def make_prompts(seed: int, *, held_out: bool) -> list[str]:
    """All prompts on topics that are trained on, or on those that are held out, in a random order.

    Args:
        seed: of the order.
        held_out: which of the two.

    Example:
        >>> len(make_prompts(0, held_out=True)) == len(HELD_OUT) * len(TEMPLATES)
        True
    """
    topics = [topic for topic in TOPICS if (topic in HELD_OUT) == held_out]
    made = [template.format(topic) for template in TEMPLATES for topic in topics]
    random.Random(seed).shuffle(made)
    return made
