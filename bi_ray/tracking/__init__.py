"""Trackers that receive a training's figures. Implement ``Tracker`` for one of your own."""

from __future__ import annotations

from bi_ray.tracking.base import Tracked, Tracker

__all__ = ["Tracked", "Tracker"]
