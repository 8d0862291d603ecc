package config

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"unicode/utf8"
)

var envName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// resolve replaces the references in a scalar. One that cannot be resolved is
// reported and leaves nothing behind.
func (b *builder) resolve(n *Node) {
	if !strings.Contains(n.raw, "${") {
		return
	}
	var out strings.Builder
	rest, bad := n.raw, false
	for {
		i := strings.Index(rest, "${")
		if i < 0 {
			break
		}
		if i > 0 && rest[i-1] == '$' { // $${ is a literal ${
			out.WriteString(rest[:i-1] + "${")
			rest = rest[i+2:]
			continue
		}
		out.WriteString(rest[:i])
		ref, after, closed := strings.Cut(rest[i+2:], "}")
		value, why, fix := "", "a reference is not closed", "end it with }, or write $${ for a literal ${"
		if closed {
			value, why, fix = b.doc.lookup(ref)
		}
		if why != "" {
			// Not the whole value: what stands around the reference may be secret.
			p := n.problem(Reference, why, fix)
			p.Value = ""
			if name, _, _ := strings.Cut(ref, ":-"); closed && (envName.MatchString(name) || strings.HasPrefix(ref, "file:")) {
				p.Value = "${" + short(ref) + "}"
			}
			b.doc.add(p)
			bad = true
		}
		n.resolved = true
		out.WriteString(value)
		rest = after
	}
	out.WriteString(rest)
	n.text = out.String()
	if bad {
		b.doc.excuse(n.Path())
	}
}

// lookup resolves what stands between ${ and }. Messages name variables and
// files, never what is in them.
func (d *document) lookup(ref string) (value, why, fix string) {
	if path, ok := strings.CutPrefix(ref, "file:"); ok {
		return d.readFile(path)
	}
	name, fallback, hasFallback := strings.Cut(ref, ":-")
	if !envName.MatchString(name) {
		return "", "a reference has no proper name", "write ${NAME}, ${NAME:-default} or ${file:/path}, or $${ for a literal ${"
	}
	v, ok := d.env(name)
	if hasFallback && v == "" {
		return fallback, "", ""
	}
	if !ok {
		return "", "the environment variable " + name + " is not set", "set it, or give a default: ${" + name + ":-default}"
	}
	return v, "", ""
}

func (d *document) readFile(path string) (value, why, fix string) {
	if path == "" {
		return "", "the reference names no file", "write ${file:/path}"
	}
	if !filepath.IsAbs(path) {
		path = filepath.Join(d.dir, path)
	}
	fix = "check that it is a plain file that penstock may read"
	// Looked at before it is opened: opening a pipe would wait for a writer.
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return "", "the file " + path + " cannot be read: " + cause(err), fix
	case !info.Mode().IsRegular():
		return "", "the file " + path + " is not a plain file", fix
	}
	f, err := os.Open(path)
	if err != nil {
		return "", "the file " + path + " cannot be read: " + cause(err), fix
	}
	defer f.Close() //nolint:errcheck // only read
	data, err := io.ReadAll(io.LimitReader(f, int64(maxFile)+1))
	switch {
	case err != nil:
		return "", "the file " + path + " cannot be read: " + cause(err), fix
	case len(data) > int(maxFile):
		return "", "the file " + path + " is larger than " + maxFile.String(), "name a file that holds one value"
	case !utf8.Valid(data):
		return "", "the file " + path + " is not text in UTF-8", "name a file that holds one value as text"
	}
	s := string(data)
	if cut, ok := strings.CutSuffix(s, "\r\n"); ok {
		return cut, "", ""
	}
	return strings.TrimSuffix(s, "\n"), "", ""
}

// cause is the reason in an error of package os, without the path.
func cause(err error) string {
	var p *os.PathError
	if errors.As(err, &p) {
		return p.Err.Error()
	}
	return err.Error()
}
