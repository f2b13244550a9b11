"""Flower + PEFT + Opacus, put together as their public examples teach; the thing that confide is measured against."""
