package transform

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/penstock/penstock/services/internal/config"
	"github.com/penstock/penstock/services/internal/document"
)

// Table looks up values in a file: CSV with a header line (.csv), or a JSON array of
// objects (.json).
type Table struct {
	// File is the table, .csv or .json. It is held in memory. Required.
	File string `yaml:"file"`
	// Key is the column, or the key of the objects, that holds what is looked up. Where a key stands twice, the last row counts. Required.
	Key string `yaml:"key"`
	// Columns are what is added. Empty means all but the key.
	Columns []string `yaml:"columns"`
	// FoldCase takes large and small letters of keys for the same.
	FoldCase bool `yaml:"fold_case"`
	// MaxSize caps the file. Unit: bytes.
	MaxSize config.Bytes `yaml:"max_size"`
	// MaxRows caps the rows. Unit: rows.
	MaxRows int `yaml:"max_rows"`
}

// SetDefaults implements [config.Defaulter].
func (t *Table) SetDefaults() { t.MaxSize, t.MaxRows = 128*config.MiB, 1_000_000 }

// Validate reports every problem, each with the key to change.
func (t Table) Validate() error {
	var p config.Problems
	ext := strings.ToLower(filepath.Ext(t.File))
	p.Need(ext == ".csv" || ext == ".json", "file", "name a file that ends in .csv or .json, e.g. /etc/penstock/accounts.csv")
	p.Need(t.Key != "", "key", "name the column that holds what is looked up, e.g. account_id")
	for i, c := range t.Columns {
		p.Need(c != "" && c != t.Key, fmt.Sprintf("columns[%d]", i), "name a column other than the key")
	}
	p.Need(t.MaxSize > 0, "max_size", "use 1 B or more, e.g. 128 MiB")
	p.Need(t.MaxRows >= 1, "max_rows", "use 1 row or more, e.g. 1000000")
	return p.Err()
}

// lookup knows the rows of a table.
type lookup struct {
	rows *file[map[string]string]
	fold bool
}

func newLookup(cfg Table, files *Files, every time.Duration) (*lookup, error) {
	read := cfg.readCSV
	if strings.EqualFold(filepath.Ext(cfg.File), ".json") {
		read = cfg.readJSON
	}
	kind := fmt.Sprintf("table %q %q %v %d", cfg.Key, cfg.Columns, cfg.FoldCase, cfg.MaxRows)
	f, err := open(files, kind, cfg.File, int64(cfg.MaxSize), every, func(data []byte) (map[string]string, int, error) {
		t := tableRows{rows: map[string]string{}}
		err := read(bytes.TrimPrefix(data, []byte("\ufeff")), &t)
		return t.rows, len(t.rows), err
	})
	return &lookup{f, cfg.FoldCase}, err
}

// about implements knowledge.
func (l *lookup) about(w *enrichWork, v []byte) ([]byte, Outcome) {
	switch document.KindOf(v) {
	case document.Object, document.Null, document.Array, document.None:
		return nil, Skipped
	case document.String, document.Number, document.Bool:
	}
	key := w.scalar(v)
	if l.fold {
		key = fold(w, key)
	}
	row, ok := l.rows.get()[string(key)]
	if !ok {
		return nil, Unknown
	}
	w.text = append(w.text[:0], row...)
	return w.text, Added
}

// fold makes the letters of text small, into w.
func fold(w *enrichWork, text []byte) []byte {
	if len(text) == 0 {
		return text
	}
	if len(w.text) == 0 || &w.text[0] != &text[0] {
		w.text = append(w.text[:0], text...)
	}
	for i, c := range w.text {
		if c >= utf8.RuneSelf {
			return []byte(foldText(string(w.text)))
		}
		if 'A' <= c && c <= 'Z' {
			w.text[i] = c | 0x20
		}
	}
	return w.text
}

func foldText(s string) string { return strings.Map(unicode.ToLower, s) }

// tableRows are the rows of a table as they are read.
type tableRows struct {
	rows map[string]string
	size int64 // in bytes, without what the map takes
}

// A row of CSV repeats the names of its columns, so that a small file may become much.
const (
	// mostRow bounds what is added to one document, in bytes.
	mostRow = 64 << 10
	// mostGrowth bounds the rows in memory, in times of max_size.
	mostGrowth = 8
)

// add puts one row into rows.
func (t *Table) add(to *tableRows, key, object string) error {
	if t.FoldCase {
		key = foldText(key)
	}
	if len(object) > mostRow {
		return fmt.Errorf("the row of %.64q takes %d bytes as JSON, more than %d; name fewer columns", key, len(object), mostRow)
	}
	if to.size += int64(len(key) + len(object)); to.size > mostGrowth*int64(t.MaxSize) {
		return fmt.Errorf("its rows take more than %d times max_size in memory; name fewer columns, or give them shorter names", mostGrowth)
	}
	if to.rows[key] = object; len(to.rows) > t.MaxRows {
		return fmt.Errorf("it has more than max_rows, %d", t.MaxRows)
	}
	return nil
}

// wanted tells whether a column is added. One without a name has no place in an object.
func (t *Table) wanted(column string) bool {
	return column != "" && column != t.Key && (len(t.Columns) == 0 || slices.Contains(t.Columns, column))
}

// readCSV reads rows of text. Empty cells are left out, and so are rows without a key.
func (t *Table) readCSV(data []byte, rows *tableRows) error {
	r := csv.NewReader(bytes.NewReader(data))
	r.ReuseRecord = true
	header, err := r.Read()
	if errors.Is(err, io.EOF) {
		return errors.New("it is empty; the first line names the columns")
	}
	if err != nil {
		return err
	}
	header = slices.Clone(header)
	key := slices.Index(header, t.Key)
	if key < 0 {
		return fmt.Errorf("it has no column %q", t.Key)
	}
	for _, c := range t.Columns {
		if !slices.Contains(header, c) {
			return fmt.Errorf("it has no column %q", c)
		}
	}
	for i, c := range header {
		if t.wanted(c) && slices.Contains(header[:i], c) {
			return fmt.Errorf("it has the column %q twice", c)
		}
	}
	var b []byte
	for {
		row, err := r.Read()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if row[key] == "" {
			continue
		}
		b = append(b[:0], '{')
		for i, cell := range row {
			if cell != "" && t.wanted(header[i]) {
				b = document.AppendQuoted(member(b, header[i]), cell)
			}
		}
		if err := t.add(rows, row[key], string(append(b, '}'))); err != nil {
			return err
		}
	}
}

// member begins a member of an object.
func member(b []byte, key string) []byte {
	if len(b) > 1 {
		b = append(b, ',')
	}
	return append(document.AppendQuoted(b, key), ':')
}

// readJSON reads objects. Their values stay as they are; nulls are left out.
func (t *Table) readJSON(data []byte, rows *tableRows) error {
	if !json.Valid(data) {
		var v []json.RawMessage
		return json.Unmarshal(data, &v) // it says where
	}
	data = document.Trim(data)
	if document.KindOf(data) != document.Array {
		return errors.New("it is no JSON array of objects")
	}
	var b []byte
	list := document.Members(data)
	for n := 1; ; n++ {
		_, start, end, more := list.Next()
		if !more {
			return nil
		}
		key, found := "", false
		b = append(b[:0], '{')
		row := data[start:end]
		if document.KindOf(row) != document.Object {
			return fmt.Errorf("element %d is no object", n)
		}
		c := document.Members(row)
		for {
			raw, start, end, more := c.Next()
			if !more {
				break
			}
			name, v := string(document.AppendUnquoted(nil, raw)), row[start:end]
			kind := document.KindOf(v)
			switch {
			case name == t.Key && kind == document.String:
				key, found = string(document.AppendUnquoted(nil, v[1:len(v)-1])), true
			case name == t.Key && (kind == document.Number || kind == document.Bool):
				key, found = string(v), true
			case kind != document.Null && t.wanted(name):
				b = append(member(b, name), v...)
			}
		}
		if !found {
			return fmt.Errorf("element %d has no %q that is a text or a number", n, t.Key)
		}
		if err := t.add(rows, key, string(append(b, '}'))); err != nil {
			return err
		}
	}
}
