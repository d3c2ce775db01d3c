//! Owns what llama.cpp's `llama-completion -n 32 --temp 0 -no-cnv --no-display-prompt` wrote after twenty prompts.
//! Must never be edited by hand.
//!
//! The prompts are the first twenty of seventy-two after which llama.cpp writes the same with flash attention, without
//! it, and with its cache in f32; our engine had no part in the choice. After the others it does
//! not agree with itself: products with activations of eight bits make any two orders of addition differ in the second
//! digit of a logit, and this model is often that undecided.

/// Prompt and continuation by SmolLM2-135M-Instruct.Q4_1, of at most 32 tokens.
pub(crate) const GOLDENS: [(&str, &str); 20] = [
    (
        "In 1969, the first human",
        " to walk on the moon was Neil Armstrong.\n\nThe Apollo 11 mission, which included Neil Armstrong, Buzz Aldi, and Edwin \"Buzz",
    ),
    (
        "Dear Sir or Madam,\n",
        "\nI am the last of the great ones,\n\nI am the last of the great ones.\n\nI am the last of the great ones.",
    ),
    (
        "The mitochondria is",
        " a type of organelle found in eukaryotic cells that plays a crucial role in cellular respiration. Mitochondria are responsible for generating energy through a process called cellular respiration",
    ),
    (
        "Q: What is the largest planet in the solar system?\nA:",
        " The largest planet in the solar system is Jupiter.\nB: The largest planet in the solar system is not known.\nC: The largest planet in the",
    ),
    ("1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11,", " 12, 13, 14, 15, 16, 17, 18, 19,"),
    (
        "a b c d e f g h i j",
        " k l m n o p q r s t u v w x y z z\n\nThis is a classic example of a polynomial with integer coefficients, where",
    ),
    ("10, 9, 8, 7, 6,", " 5, 4, 3, 2, 1, 0, 1, 2, 3, 4, 5"),
    (
        "apple -> APPLE\nhouse -> HOUSE\ngoose -> GOOSE\nriver ->",
        " river\n\nThe original sentence is a classic example of a dangling modifier, where a word is intended to modify a noun but is not. In this case",
    ),
    (
        "France: Paris\nGermany: Berlin\nItaly: Rome\nSpain:",
        " Barcelona\nSpain: Madrid\nSpain: Barcelona\nSpain: Madrid\nSpain: Barcelona\nSpain: Madrid\nSpain: Barcelona\nSpain: Madrid\nSpain:",
    ),
    (
        "Row, row, row your boat, gently down the stream. Row, row, row your boat,",
        " gently down the stream.\n\nThis is a classic example of a simple harmonic motion, where the object is accelerating or decelerating, but the net effect is",
    ),
    (
        "All animals are equal, but",
        " they're not equal in the sense of being equal in terms of their biology. They're equal in terms of their biology, but they're not equal in terms",
    ),
    (
        "The Roman Empire was",
        " a vast empire that stretched across Europe, from the Mediterranean to the British Isles. It was a complex and diverse society with different cultures, languages, and traditions.",
    ),
    (
        "<|im_start|>user\nWhat is the capital of Germany?<|im_end|>\n<|im_start|>assistant\n",
        "The capital of Germany is Berlin.",
    ),
    (
        "<|im_start|>user\nRepeat after me: The house stood at the end of a long lane, and nobody had lived in it for thirty years.<|im_end|>\n<|im_start|>assistant\nThe house stood",
        " at the end of a long lane, and nobody had lived in it for thirty years.",
    ),
    (
        "<|im_start|>user\nSay hello.<|im_end|>\n<|im_start|>assistant\n",
        "I'm so glad you're here. I'm so glad you're here. I'm so glad you're here. I'm so glad you're here.",
    ),
    ("<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n<|im_start|>assistant\n", "The answer is 4."),
    (
        "<|im_start|>user\nWho wrote Romeo and Juliet?<|im_end|>\n<|im_start|>assistant\n",
        "The play \"Romeo and Juliet\" by William Shakespeare is written by William Shakespeare's sonnets. The sonnets are a form of poetry that originated in Italy",
    ),
    (
        "<|im_start|>user\nName three fruits.<|im_end|>\n<|im_start|>assistant\n",
        "1. Bananas\n2. Oranges\n3. Grapes",
    ),
    (
        "<|im_start|>user\nWhat colour is the sky?<|im_end|>\n<|im_start|>assistant\n",
        "The sky is a deep shade of indigo, a deep shade of indigo, a deep shade of indigo, a deep shade of indigo, a deep shade of indigo",
    ),
    (
        "<|im_start|>user\nWhat is the capital of Italy?<|im_end|>\n<|im_start|>assistant\n",
        "The capital of Italy is Rome.",
    ),
];
