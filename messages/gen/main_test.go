package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestGeneratedCodeIsInDate(t *testing.T) {
	want, err := generate(t.Context(), "..")
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join("..", output))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s is stale: run go generate ./messages", output)
	}
}

func TestWrite(t *testing.T) {
	tests := []struct {
		name, proto string
		err         string // "" for none
		makes       string
	}{
		{"message", `syntax = "proto3"; package p; option go_package = "example.com/p;p"; // Thing is documented.
			message Thing { uint32 n = 1; }`, "", "type Thing struct"},
		{"syntax error", `syntax = "proto3"; message {`, "compile penstock.proto", ""},
		{"no Go package", `syntax = "proto3"; message Thing {}`, "read penstock.proto", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, source), []byte(tt.proto), 0o600); err != nil {
				t.Fatal(err)
			}
			err := write(t.Context(), dir)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("error %v, want one that says %q", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			code, err := os.ReadFile(filepath.Join(dir, output))
			if err != nil || !bytes.Contains(code, []byte(tt.makes)) {
				t.Errorf("code (%v):\n%s\nwant %q in it", err, code, tt.makes)
			}
		})
	}
}
