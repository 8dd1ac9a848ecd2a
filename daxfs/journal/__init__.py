"""Layer 4: atomicity; the jbd2 journal, its transactions and its recovery."""
