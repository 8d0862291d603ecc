package transform

import (
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/penstock/penstock/services/internal/config"
	"github.com/penstock/penstock/services/internal/document"
)

// Enrich adds what is known about a value of the document.
type Enrich struct {
	// Fields are dotted paths to the value, e.g. sourceIPAddress; \. stands for a dot in a key, lists are walked through. The first value about which something is known counts. Required.
	Fields []string `yaml:"fields"`
	// Target is the dotted path at which the object is put; what stands there is replaced. Empty means penstock.geo with geoip, and penstock.<name of the file without extension> with table.
	Target string `yaml:"target"`
	// GeoIP looks up addresses in databases of the MaxMind format.
	GeoIP *GeoIP `yaml:"geoip"`
	// Table looks up values in a CSV or JSON file.
	Table *Table `yaml:"table"`
	// CheckEvery is how often the files are looked at, while events come; changed ones are read again. Unit: duration.
	CheckEvery time.Duration `yaml:"check_every"`
}

// SetDefaults implements [config.Defaulter].
func (e *Enrich) SetDefaults() { e.CheckEvery = 30 * time.Second }

// Validate reports every problem, each with the key to change. Files are not opened.
func (e Enrich) Validate() error {
	var p config.Problems
	p.Need(len(e.Fields) > 0, "fields", "name at least one field, e.g. sourceIPAddress")
	for i, f := range e.Fields {
		checkPath(&p, fmt.Sprintf("fields[%d]", i), f)
	}
	if e.Target != "" {
		checkPath(&p, "target", e.Target)
	}
	p.Need((e.GeoIP == nil) != (e.Table == nil), "", "use exactly one of geoip and table")
	p.Need(e.CheckEvery >= time.Second, "check_every", "use 1s or more, e.g. 30s")
	if e.GeoIP != nil {
		p.In("geoip", e.GeoIP.Validate())
	}
	if e.Table != nil {
		p.In("table", e.Table.Validate())
	}
	return p.Err()
}

func checkPath(p *config.Problems, key, path string) {
	for _, word := range splitPath(path) {
		if word == "" {
			p.Add(key, "a key between two dots is empty", "use keys with dots between them, e.g. userIdentity.userName")
			return
		}
	}
}

// TargetPath is Target with what it is when empty.
func (e *Enrich) TargetPath() string {
	switch {
	case e.Target != "":
		return e.Target
	case e.GeoIP != nil:
		return "penstock.geo"
	}
	name := filepath.Base(e.Table.File)
	return "penstock." + strings.ReplaceAll(strings.TrimSuffix(name, filepath.Ext(name)), ".", `\.`)
}

// Outcome is what came of enriching an event.
type Outcome uint8

// The outcomes, by rising interest: of several fields the last of them counts.
const (
	// Absent: none of the fields is there.
	Absent Outcome = iota
	// Skipped: the value is no address, or one that is private or reserved.
	Skipped
	// Unknown: nothing is known about the value.
	Unknown
	// Conflict: something that is no object stands in the way of the target.
	Conflict
	// Added: the object is in the document.
	Added
	// Failed: the document was not understood.
	Failed
)

// String is the outcome as metrics name it.
func (o Outcome) String() string {
	return [...]string{"absent", "skipped", "unknown", "conflict", "added", "failed"}[o]
}

// Enricher is a compiled [Enrich]. It may be used concurrently.
type Enricher struct {
	paths  [][]string
	target target
	know   knowledge
	work   sync.Pool
}

// knowledge is what an Enricher asks.
type knowledge interface {
	// about returns an object about a scalar JSON value. It is not changed afterwards.
	about(w *enrichWork, v []byte) ([]byte, Outcome)
}

// enrichWork is what enriching one document needs.
type enrichWork struct {
	values [][]byte
	text   []byte
}

// scalar returns the text of a string, and anything else as it is written. It is
// valid until the next call.
func (w *enrichWork) scalar(v []byte) []byte {
	if document.KindOf(v) != document.String {
		return v
	}
	w.text = document.AppendUnquoted(w.text[:0], v[1:len(v)-1])
	return w.text
}

// NewEnricher opens the files of cfg, which must be valid, by way of files. The error
// is a fault that says what is wrong with a file (enrich.unreadable).
func NewEnricher(cfg Enrich, files *Files) (*Enricher, error) {
	e := &Enricher{target: newTarget(splitPath(cfg.TargetPath()))}
	e.work.New = func() any { return new(enrichWork) }
	for _, f := range cfg.Fields {
		e.paths = append(e.paths, splitPath(f))
	}
	var err error
	if cfg.GeoIP != nil {
		e.know, err = newGeo(*cfg.GeoIP, files, cfg.CheckEvery)
	} else {
		e.know, err = newLookup(*cfg.Table, files, cfg.CheckEvery)
	}
	return e, err
}

// Apply appends doc to dst with the object added. Only with Added is out worth
// keeping; in all other cases the document stays as it is.
func (e *Enricher) Apply(dst, doc []byte) (out []byte, result Outcome) {
	w := e.work.Get().(*enrichWork)
	defer e.work.Put(w)
	for _, path := range e.paths {
		var ok bool
		if w.values, ok = appendValues(w.values[:0], doc, path); !ok {
			return dst, Failed
		}
		for _, v := range w.values {
			object, got := e.know.about(w, v)
			if got != Added {
				result = max(result, got)
				continue
			}
			out, res := e.target.set(dst, doc, object)
			switch res {
			case done:
				return out, Added
			case inTheWay:
				return out, Conflict
			case notJSON:
			}
			return out, Failed
		}
	}
	if !document.Whole(document.Trim(doc)) {
		return dst, Failed
	}
	return dst, result
}
