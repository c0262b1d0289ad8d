"""Simulated rigs: the scene, its pictures, its physics over the real robot protocol, and an expert that solves its tasks."""

SIMULATORS = {"tabletop": "vla_ros.sim.server:TabletopServer"}
