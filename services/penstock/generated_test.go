package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/config"
	"github.com/penstock/penstock/services/internal/golden"
)

// What is generated from the code is in date: UPDATE_GOLDEN=1 go test ./services/penstock
// writes it anew.
func TestGeneratedFilesAreInDate(t *testing.T) {
	docs, err := config.ReadDocs("../../services/...")
	if err != nil {
		t.Fatal(err)
	}
	// In a test the types of package main go by the path of the folder.
	here := reflect.TypeFor[File]().PkgPath() + "."
	for key, text := range docs {
		if rest, ok := strings.CutPrefix(key, "main."); ok {
			docs[here+rest] = text
		}
	}
	schema, err := config.Schema(defaults(), docs)
	if err != nil {
		t.Fatal(err)
	}
	golden.Check(t, "schema.json", schema)
	reference, err := config.Markdown(defaults(), docs)
	if err != nil {
		t.Fatal(err)
	}
	golden.Check(t, filepath.Join("..", "..", "docs", "reference", "config.md"), reference)

	var b bytes.Buffer
	b.WriteString("# Errors\n\nEvery error has a code, which is also the label of metrics and the reason in\nquarantine. Class `retry` is tried again, `reject` goes to quarantine, `stop` waits\nfor somebody to mend it. This page is generated from the code.\n\n| code | class | how to mend it |\n| --- | --- | --- |\n")
	for _, k := range fault.All() {
		if !strings.HasPrefix(k.Code, "test.") {
			fmt.Fprintf(&b, "| `%s` | %s | %s |\n", k.Code, k.Class, strings.ReplaceAll(k.Fix, "|", "\\|"))
		}
	}
	golden.Check(t, filepath.Join("..", "..", "docs", "reference", "errors.md"), b.Bytes())
}

// The configuration that `config init` prints is good, and so is the one of compose.
func TestShippedConfigurationsAreGood(t *testing.T) {
	for _, path := range []string{"example.yaml", "../../deploy/penstock.example.yaml", "../../deploy/penstock.demo.yaml"} {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		f := defaults()
		if err := config.Parse(path, data, &f, func(string) (string, bool) { return "", false }); err != nil {
			t.Errorf("%s:\n%v", path, err)
		}
	}
}
