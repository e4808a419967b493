"""What a finished run hands to trainers and servers: patterns, model card, configurations, hints."""
