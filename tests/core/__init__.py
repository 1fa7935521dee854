"""Tests of the native core: frames, queues, timers, rooms; most of them also run on its twin."""
