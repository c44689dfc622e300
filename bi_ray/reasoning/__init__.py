"""Problems as graphs, chains of thought as plans, and the checker that recomputes every step."""
