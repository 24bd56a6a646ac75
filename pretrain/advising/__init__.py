"""Which recipe for which corpus, on which hardware: what `mirada advise` is made of."""
