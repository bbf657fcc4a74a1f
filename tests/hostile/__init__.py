"""Attacks on a gateway, each as an attacker would carry it out."""
