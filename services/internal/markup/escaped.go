package markup

import (
	"errors"
	"fmt"
	"html/template"
	"io"
	"io/fs"
	"slices"
	"strings"
)

// Escaped has html/template escape the templates in files that fit pattern, and returns
// all of them as one text for Parse. For the generator and tests: whatever calls it
// makes the program large.
func Escaped(files fs.FS, pattern string, funcs map[string]any) (string, error) {
	set, err := template.New("").Funcs(funcs).ParseFS(files, pattern)
	if err != nil {
		return "", err
	}
	for _, t := range set.Templates() {
		if named(t) {
			// It escapes before it executes. What fails without data does no harm.
			var unsafe *template.Error
			if err := set.ExecuteTemplate(io.Discard, t.Name(), nil); errors.As(err, &unsafe) {
				return "", err
			}
		}
	}
	var b strings.Builder
	all := set.Templates()
	slices.SortFunc(all, func(a, c *template.Template) int { return strings.Compare(a.Name(), c.Name()) })
	for _, t := range all {
		if named(t) {
			fmt.Fprintf(&b, "{{define %q}}%s{{end}}\n", t.Name(), t.Tree.Root)
		}
	}
	text := b.String()
	_, err = Parse(text, funcs, nil)
	return text, err
}

// named tells a template from the file that it stands in.
func named(t *template.Template) bool {
	return t.Tree != nil && t.Name() != "" && !strings.HasSuffix(t.Name(), ".html")
}
