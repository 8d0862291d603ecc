// Command sbom says what a program written in Go is made of:
//
//	go run ./deploy/sbom PROGRAM FOLDER
//
// It writes FOLDER/sbom.cdx.json, the modules that the linker noted in PROGRAM as a bill of
// materials (CycloneDX 1.6), and FOLDER/LICENSES.txt, the licences and notices of all of
// them. The same program gives the same bytes. A module without a licence that it
// knows is an error: somebody has to look at it.
//
// Needs the modules in the cache of Go, where a build leaves them.
package main

import (
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"unicode"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: sbom PROGRAM FOLDER")
		os.Exit(2)
	}
	if err := write(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "sbom:", err)
		os.Exit(1)
	}
}

func write(program, folder string) error {
	info, err := buildinfo.ReadFile(program)
	if err != nil {
		return err
	}
	out, err := exec.Command("go", "env", "GOMODCACHE", "GOROOT").Output()
	if err != nil {
		return fmt.Errorf("ask go where modules are: %w", err)
	}
	where := strings.Fields(string(out))
	if len(where) != 2 {
		return fmt.Errorf("go env says %q, want two folders", out)
	}
	bill, licences, err := describe(info, where[0], where[1])
	if err != nil {
		return err
	}
	if err := os.MkdirAll(folder, 0o755); err != nil { //nolint:gosec // for all to read
		return err
	}
	for name, data := range map[string][]byte{"sbom.cdx.json": bill, "LICENSES.txt": licences} {
		if err := os.WriteFile(filepath.Join(folder, name), data, 0o644); err != nil { //nolint:gosec // for all to read
			return err
		}
	}
	return nil
}

// The part of CycloneDX that is used here.
type (
	bom struct {
		Format       string       `json:"bomFormat"`
		Spec         string       `json:"specVersion"`
		Serial       string       `json:"serialNumber,omitempty"`
		Version      int          `json:"version"`
		Metadata     metadata     `json:"metadata"`
		Components   []component  `json:"components"`
		Dependencies []dependency `json:"dependencies"`
	}
	metadata struct {
		Component component `json:"component"`
	}
	component struct {
		Type       string     `json:"type"`
		Ref        string     `json:"bom-ref"`
		Name       string     `json:"name"`
		Version    string     `json:"version,omitempty"`
		Hashes     []hash     `json:"hashes,omitempty"`
		Licenses   []licence  `json:"licenses,omitempty"`
		PURL       string     `json:"purl,omitempty"`
		Properties []property `json:"properties,omitempty"`
	}
	hash struct {
		Alg     string `json:"alg"`
		Content string `json:"content"`
	}
	licence struct {
		License    *licenceID `json:"license,omitempty"`
		Expression string     `json:"expression,omitempty"`
	}
	licenceID struct {
		ID string `json:"id"`
	}
	property struct {
		Name  string `json:"name"`
		Value string `json:"value"`
	}
	dependency struct {
		Ref       string   `json:"ref"`
		DependsOn []string `json:"dependsOn"`
	}
)

// describe returns the bill and the licences of what was built as info says.
func describe(info *debug.BuildInfo, modCache, goRoot string) (bill, licences []byte, err error) {
	b := bom{Format: "CycloneDX", Spec: "1.6", Version: 1}
	b.Metadata.Component = component{
		Type: "application", Ref: purl(info.Main.Path, info.Main.Version), Name: info.Main.Path, Version: info.Main.Version,
		Licenses: said([]string{"Apache-2.0"}), PURL: purl(info.Main.Path, info.Main.Version),
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "GOOS", "GOARCH", "CGO_ENABLED", "-tags":
			b.Metadata.Component.Properties = append(b.Metadata.Component.Properties, property{"go:build:" + s.Key, s.Value})
		}
	}
	uses := dependency{Ref: b.Metadata.Component.Ref, DependsOn: []string{}}
	legal := texts{}
	var wrong []error
	add := func(c component, folder string) {
		ids, err := legal.read(c.Name+" "+c.Version, folder)
		if err != nil {
			wrong = append(wrong, fmt.Errorf("%s: %w", c.Name, err))
		}
		c.Licenses = said(ids)
		b.Components = append(b.Components, c)
		uses.DependsOn = append(uses.DependsOn, c.Ref)
	}
	std := purl("std", info.GoVersion)
	add(component{Type: "library", Ref: std, Name: "std", Version: info.GoVersion, PURL: std}, goRoot)
	for _, m := range info.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		ref := purl(m.Path, m.Version)
		c := component{Type: "library", Ref: ref, Name: m.Path, Version: m.Version, PURL: ref}
		if sum, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(m.Sum, "h1:")); err == nil && len(sum) == sha256.Size {
			c.Hashes = []hash{{"SHA-256", hex.EncodeToString(sum)}}
		}
		add(c, filepath.Join(modCache, escaped(m.Path)+"@"+escaped(m.Version)))
	}
	if len(wrong) > 0 {
		return nil, nil, errors.Join(wrong...)
	}
	b.Dependencies = []dependency{uses}
	plain, err := json.Marshal(b)
	if err != nil {
		return nil, nil, err
	}
	b.Serial = serial(plain)
	if bill, err = json.MarshalIndent(b, "", " "); err != nil {
		return nil, nil, err
	}
	return append(bill, '\n'), legal.all(), nil
}

func purl(path, version string) string {
	if version == "" {
		return "pkg:golang/" + path
	}
	return "pkg:golang/" + path + "@" + strings.ReplaceAll(version, "+", "%2B")
}

// serial makes the number of a bill from what is in it, so that it changes only when that does.
func serial(of []byte) string {
	s := sha256.Sum256(of)
	s[6] = s[6]&0x0f | 0x80 // a UUID of version 8: made as the maker likes
	s[8] = s[8]&0x3f | 0x80
	x := hex.EncodeToString(s[:16])
	return "urn:uuid:" + strings.Join([]string{x[:8], x[8:12], x[12:16], x[16:20], x[20:]}, "-")
}

// escaped is how the cache writes a path: !a for A.
func escaped(path string) string {
	var b strings.Builder
	for _, r := range path {
		if unicode.IsUpper(r) {
			b.WriteByte('!')
			r = unicode.ToLower(r)
		}
		b.WriteRune(r)
	}
	return b.String()
}

// said writes licences as CycloneDX does.
func said(ids []string) []licence {
	if len(ids) == 1 {
		return []licence{{License: &licenceID{ids[0]}}}
	}
	return []licence{{Expression: strings.Join(ids, " AND ")}}
}

// texts are licences and notices, each once, with the modules that they are of.
type texts []struct {
	text string
	of   []string
}

func (t *texts) add(module, text string) {
	for i := range *t {
		if (*t)[i].text == text {
			(*t)[i].of = append((*t)[i].of, module)
			return
		}
	}
	*t = append(*t, struct {
		text string
		of   []string
	}{text, []string{module}})
}

// read adds the files of a module that begin like a licence, and returns the SPDX ids of those.
func (t *texts) read(module, folder string) ([]string, error) {
	files, err := os.ReadDir(folder)
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, f := range files {
		name := strings.ToUpper(f.Name())
		legal := strings.HasPrefix(name, "LICEN") || strings.HasPrefix(name, "COPYING")
		if f.IsDir() || strings.HasSuffix(name, ".GO") || !legal && !strings.HasPrefix(name, "NOTICE") && !strings.HasPrefix(name, "PATENTS") {
			continue
		}
		data, err := os.ReadFile(filepath.Join(folder, f.Name()))
		if err != nil {
			return nil, err
		}
		text := strings.TrimSpace(strings.ReplaceAll(string(data), "\r\n", "\n"))
		t.add(module, text)
		if legal {
			ids = append(ids, recognise(text)...)
		}
	}
	slices.Sort(ids)
	if ids = slices.Compact(ids); len(ids) == 0 {
		return nil, errors.New("no licence that is known here; look at it, and at recognise in deploy/sbom")
	}
	return ids, nil
}

// recognise returns the SPDX ids of the licences in a text, by what they alone say.
func recognise(text string) []string {
	text = strings.ToLower(strings.Join(strings.Fields(text), " "))
	var ids []string
	for _, l := range []struct {
		id  string
		has []string
		not string
	}{
		{"Apache-2.0", []string{"apache license", "version 2.0"}, ""},
		{"MPL-2.0", []string{"mozilla public license", "2.0"}, ""},
		{"MIT", []string{"permission is hereby granted, free of charge", "the above copyright notice and this permission notice"}, ""},
		{"ISC", []string{"permission to use, copy, modify, and", "distribute this software for any purpose", "copyright notice and this permission notice"}, ""},
		{"BSD-3-Clause", []string{"redistribution and use in source and binary forms", "names of its contributors may be used"}, ""},
		{"BSD-3-Clause", []string{"redistribution and use in source and binary forms", "may be used to endorse"}, ""},
		{"BSD-2-Clause", []string{"redistribution and use in source and binary forms"}, "to endorse"},
		{"Unlicense", []string{"this is free and unencumbered software"}, ""},
		{"CC0-1.0", []string{"cc0 1.0"}, ""},
	} {
		all := l.not == "" || !strings.Contains(text, l.not)
		for _, part := range l.has {
			all = all && strings.Contains(text, part)
		}
		if all && !slices.Contains(ids, l.id) {
			ids = append(ids, l.id)
		}
	}
	return ids
}

func (t *texts) all() []byte {
	var b strings.Builder
	b.WriteString("Licences and notices of what penstock is built of. Penstock's own is Apache-2.0.\n")
	for _, x := range *t {
		b.WriteString("\n" + strings.Repeat("=", 80) + "\n" + strings.Join(x.of, "\n") + "\n" + strings.Repeat("-", 80) + "\n" + x.text + "\n")
	}
	return []byte(b.String())
}
