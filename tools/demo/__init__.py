"""Training of the demo checkpoint: questions, pictures, tokenizer, model, training loop, export."""
