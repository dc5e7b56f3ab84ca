"""Text: the tokenizer, detokenization of a stream of tokens, chat templates."""
