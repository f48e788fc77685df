"""What the short forms of English mean: "don't" -> "do not"."""

_NOT = "are could did do does had has have is might must need should was were would".split()
_ENDINGS = {"'ll": "will", "'ve": "have", "'re": "are", "'d": "would", "'s": "is"}
_SUBJECTS = "he how i it she that there they this we what when where who why you".split()

CONTRACTION_MAP = {
    **{f"{verb}n't": f"{verb} not" for verb in _NOT},
    **{f"{verb}n't've": f"{verb} not have" for verb in ("could", "had", "might", "must", "should", "would")},
    **{f"{verb}'ve": f"{verb} have" for verb in ("could", "might", "must", "should", "would")},
    **{f"{subject}{ending}": f"{subject} {meaning}" for subject in _SUBJECTS for ending, meaning in _ENDINGS.items()},
    **{f"{subject}'d've": f"{subject} would have" for subject in ("he", "i", "it", "she", "they", "we", "you")},
    "ain't": "is not",
    "can't": "cannot",
    "can't've": "cannot have",
    "i'm": "i am",
    "let's": "let us",
    "o'clock": "of the clock",
    "shan't": "shall not",
    "won't": "will not",
    "won't've": "will not have",
    "y'all": "you all",
    "'cause": "because",
}
