"""What a checkpoint does with its mask tokens: heterogeneity and affinity by depth."""
