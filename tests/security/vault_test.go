// Package security attacks penstock as strangers would: secrets are planted and looked
// for in all that it says and writes, and its listeners, readers, pages and commands get
// what a hostile sender, object, destination or bus could bring. docs/security.md names
// the tests of this package and of others for each promise that it makes.
package security

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/penstock/penstock/tests/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }

// takesLong skips what takes most of a minute, but where it is asked for.
func takesLong(t *testing.T) {
	t.Helper()
	if os.Getenv("PENSTOCK_TEST_SECURITY") == "" {
		t.Skip("takes long: PENSTOCK_TEST_SECURITY=1 go test ./tests/security")
	}
	t.Parallel()
}

// vault makes canaries: texts that stand where secrets do and nowhere else. Each is
// letters and digits, so that no way of quoting changes it; what quoting would change
// may stand behind it.
type vault struct {
	words map[string]string // by where they were planted
}

// canaryLength is how much of a canary is looked for: one that was cut off is found too.
const canaryLength = 14

// plant makes the canary of a place.
func (v *vault) plant(where string) string {
	if v.words == nil {
		v.words = map[string]string{}
	}
	sum := sha256.Sum256([]byte("canary of " + where))
	word := "Cny" + hex.EncodeToString(sum[:])[:24]
	v.words[where] = word
	return word
}

// add looks for a text that cannot be chosen, such as a part of a key file.
func (v *vault) add(where, text string) { v.words[where] = text }

// needle is one form of a canary.
type needle struct {
	where, form string
	text        []byte
}

// needles are all forms of all canaries: as they are (also in JSON, URLs and YAML, which
// do not change them), in hex, reversed, and in base64 wherever in its text they begin.
func (v *vault) needles() []needle {
	var all []needle
	for where, word := range v.words {
		word = word[:min(len(word), canaryLength)]
		add := func(form, text string) { all = append(all, needle{where, form, []byte(text)}) }
		add("plain", word)
		add("lower case", strings.ToLower(word))
		add("hex", hex.EncodeToString([]byte(word)))
		add("HEX", strings.ToUpper(hex.EncodeToString([]byte(word))))
		for shift := range 3 {
			text := base64.StdEncoding.EncodeToString([]byte(strings.Repeat("\x00", shift) + word))
			text = text[(shift*8+5)/6 : len(text)-4] // what no neighbour changes
			add(fmt.Sprintf("base64+%d", shift), text)
			add(fmt.Sprintf("base64url+%d", shift), strings.NewReplacer("+", "-", "/", "_").Replace(text))
		}
	}
	return all
}

// evidence is all that penstock said and wrote, by where.
type evidence struct {
	mu   sync.Mutex
	said map[string][]byte
	size int
}

func (e *evidence) take(where string, data []byte) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.said == nil {
		e.said = map[string][]byte{}
	}
	e.said[where] = append(e.said[where], data...)
	e.size += len(data)
}

// takeFolder takes all files below dir but those named.
func (e *evidence) takeFolder(t testing.TB, dir string, but ...string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		for _, b := range but {
			if path == b {
				return nil
			}
		}
		if info, err := d.Info(); err != nil || !info.Mode().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		e.take("file "+strings.TrimPrefix(path, dir), data)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// search fails the test for each canary that is in the evidence.
func (e *evidence) search(t *testing.T, v *vault) {
	t.Helper()
	needles := v.needles()
	for where, data := range e.said {
		for _, n := range needles {
			if at := bytes.Index(data, n.text); at >= 0 {
				t.Errorf("the secret of %s is in %s as %s:\n…%s…", n.where, where, n.form, data[max(0, at-200):min(len(data), at+120)])
			}
		}
	}
	t.Logf("%d canaries in %d forms were looked for in %d places, %d bytes", len(v.words), len(needles), len(e.said), e.size)
}

// The search finds each form, cut off or not. A search that finds nothing would pass all.
func TestCanariesAreFound(t *testing.T) {
	t.Parallel()
	v := &vault{}
	word := v.plant("here")
	for name, text := range map[string]string{
		"plain": "x " + word + " y", "cut off": word[:canaryLength] + "...", "json": `{"a":"` + word + `\u003c"}`,
		"hex": hex.EncodeToString([]byte("ab" + word)), "lower": strings.ToLower(word),
		"base64 0": base64.StdEncoding.EncodeToString([]byte(word)), "base64 1": base64.StdEncoding.EncodeToString([]byte(":" + word + ":")),
		"base64 2": base64.URLEncoding.EncodeToString([]byte("u:" + word)), "base64 of a name": base64.RawStdEncoding.EncodeToString([]byte("user:" + word)),
	} {
		found := false
		for _, n := range v.needles() {
			found = found || bytes.Contains([]byte(text), n.text)
		}
		if !found {
			t.Errorf("%s is not found in %s", name, text)
		}
	}
}
