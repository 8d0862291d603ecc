package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"
)

const mit = "Permission is hereby granted, free of charge, to any person.\nThe above copyright notice and this permission notice shall be included."

func licensed(t *testing.T, folder, text string) {
	t.Helper()
	if err := os.MkdirAll(folder, 0o750); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(folder, "LICENSE"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestDescribe(t *testing.T) {
	mods, root := t.TempDir(), t.TempDir()
	licensed(t, root, "Redistribution and use in source and binary forms. Neither the name of X nor the names of its contributors may be used to endorse.")
	licensed(t, filepath.Join(mods, "example.com/!big/one@v1.2.0"), mit)
	licensed(t, filepath.Join(mods, "example.com/two@v0.1.0"), mit+"\nApache License\nVersion 2.0")
	info := &debug.BuildInfo{
		GoVersion: "go1.26.0",
		Main:      debug.Module{Path: "example.com/main", Version: "v1.0.0+dirty"},
		Deps: []*debug.Module{
			{Path: "example.com/Big/one", Version: "v1.2.0", Sum: "h1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="},
			{Path: "example.com/old", Version: "v1.0.0", Replace: &debug.Module{Path: "example.com/two", Version: "v0.1.0"}},
		},
	}
	bill, licences, err := describe(info, mods, root)
	if err != nil {
		t.Fatal(err)
	}
	var b bom
	if err := json.Unmarshal(bill, &b); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, c := range b.Components {
		l := c.Licenses[0].Expression
		if c.Licenses[0].License != nil {
			l = c.Licenses[0].License.ID
		}
		got = append(got, c.PURL+" "+l)
	}
	want := []string{
		"pkg:golang/std@go1.26.0 BSD-3-Clause",
		"pkg:golang/example.com/Big/one@v1.2.0 MIT",
		"pkg:golang/example.com/two@v0.1.0 Apache-2.0 AND MIT",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("components:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if b.Metadata.Component.PURL != "pkg:golang/example.com/main@v1.0.0%2Bdirty" {
		t.Errorf("the program is %s", b.Metadata.Component.PURL)
	}
	if len(b.Components[1].Hashes) != 1 || len(b.Dependencies[0].DependsOn) != 3 {
		t.Errorf("hashes %v, dependencies %v", b.Components[1].Hashes, b.Dependencies)
	}
	if n := strings.Count(string(licences), "free of charge"); n != 2 {
		t.Errorf("%d texts with the words of MIT, want 2:\n%s", n, licences)
	}
	again, _, err := describe(info, mods, root)
	if err != nil || !bytes.Equal(again, bill) {
		t.Errorf("a second bill differs (%v)", err)
	}

	licensed(t, filepath.Join(mods, "example.com/two@v0.1.0"), "All rights reserved.")
	if _, _, err := describe(info, mods, root); err == nil || !strings.Contains(err.Error(), "example.com/two") {
		t.Errorf("a module without a licence: %v", err)
	}
}
