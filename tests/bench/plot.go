package main

func publish(report, doc string) error { return nil }
