package main

import (
	"strings"
	"testing"

	"github.com/penstock/penstock/services/operate/destinations"
)

func TestPick(t *testing.T) {
	list := []*destinations.Status{{Name: "a"}, {Name: "b"}}
	if s, err := pick(list, "b"); err != nil || s != list[1] {
		t.Errorf("%v, %v", s, err)
	}
	for _, l := range [][]*destinations.Status{list, nil} {
		if _, err := pick(l, "c"); exitCode(err) != exitUsage || !strings.Contains(err.Error(), `"c"`) {
			t.Errorf("%v", err)
		}
	}
}
