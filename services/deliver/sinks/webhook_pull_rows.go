package sinks

import (
	"bytes"
	"encoding/hex"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/klauspost/compress/gzip"

	"github.com/penstock/penstock/services/internal/document"
)

// appendRow writes an event as one line of JSON, without an end of line.
func (f PullRows) appendRow(dst []byte, e *Event) []byte {
	switch f {
	case RowsEnvelope:
		dst = Envelope.appendLine(dst, e)
		return dst[:len(dst)-1]
	case RowsDocument:
		return appendDoc(dst, e.Doc)
	case RowsWithID:
	}
	doc := document.Trim(e.Doc)
	if document.KindOf(doc) != document.Object {
		dst = append(dst, `{"id":"`...)
		dst = hex.AppendEncode(dst, e.ID[:])
		dst = append(dst, `","event":`...)
		return append(appendDoc(dst, doc), '}')
	}
	name, members := "id", 0
	for c := document.Members(doc); ; members++ {
		key, _, _, ok := c.Next()
		if !ok {
			break
		}
		if string(key) == "id" || bytes.IndexByte(key, '\\') >= 0 && string(document.AppendUnquoted(nil, key)) == "id" {
			name = "penstock_id"
		}
	}
	dst = append(dst, `{"`...)
	dst = append(dst, name...)
	dst = append(dst, `":"`...)
	dst = hex.AppendEncode(dst, e.ID[:])
	dst = append(dst, '"')
	if members == 0 {
		return append(dst, '}')
	}
	opening := len(dst)
	dst = appendDoc(dst, doc)
	dst[opening] = ',' // in place of the document's own brace
	return dst
}

// pullWriter collects the rows of a page; of an answer without a limit it sends them
// as they come.
type pullWriter struct {
	x      *pullExchange
	array  bool
	stream bool
	most   int // bytes of a page
	rows   int
	buf    *[]byte
	gzip   *gzip.Writer // nil where the consumer does not take it
}

func (x *pullExchange) newWriter() *pullWriter {
	buf, ok := x.s.pages.Get().(*[]byte)
	if !ok {
		buf = new([]byte)
	}
	*buf = (*buf)[:0]
	return &pullWriter{x: x, array: x.ask.array, stream: x.ask.limit == 0, most: int(x.s.cfg.Limits.Page), buf: buf}
}

// keepPage is the largest page that is kept for reuse, in bytes.
const keepPage = 8 << 20

func (w *pullWriter) close() {
	if cap(*w.buf) <= keepPage {
		w.x.s.pages.Put(w.buf)
	}
	if w.gzip != nil {
		w.gzip.Reset(nil)
		w.x.s.zippers.Put(w.gzip)
	}
}

func (w *pullWriter) reset() { w.rows, *w.buf = 0, (*w.buf)[:0] }

// row adds an event. Full tells that it has no room on the page.
func (w *pullWriter) row(e *Event) (full bool, err error) {
	before, b := len(*w.buf), *w.buf
	switch {
	case w.array && w.rows == 0:
		b = append(b, "[\n"...)
	case w.array:
		b = append(b, ",\n"...)
	case w.rows > 0:
		b = append(b, '\n')
	}
	b = w.x.s.cfg.Rows.appendRow(b, e)
	if !w.stream && w.rows > 0 && len(b) > w.most {
		*w.buf = b[:before]
		return true, nil
	}
	*w.buf = b
	w.rows++
	if w.stream && len(b) >= pullChunk {
		if !w.x.begun {
			w.x.begin(-1)
		}
		err = w.flush()
	}
	return false, err
}

// finish ends the last row and the list.
func (w *pullWriter) finish() {
	*w.buf = append(*w.buf, '\n')
	if w.array {
		*w.buf = append(*w.buf, "]\n"...)
	}
}

// flush writes what was collected, within the time for each pullChunk.
func (w *pullWriter) flush() error {
	control := http.NewResponseController(w.x.w)
	for b := *w.buf; len(b) > 0; {
		n := min(len(b), pullChunk)
		if err := control.SetWriteDeadline(time.Now().Add(w.x.s.cfg.Timeouts.Stall)); err != nil {
			return err
		}
		var err error
		if w.gzip != nil {
			_, err = w.gzip.Write(b[:n])
		} else {
			_, err = w.x.w.Write(b[:n])
		}
		if err != nil {
			return err
		}
		b = b[n:]
	}
	*w.buf = (*w.buf)[:0]
	return nil
}

// begin sends the header. Size is that of the whole body, -1 when it is not known.
func (x *pullExchange) begin(size int) {
	h := x.w.Header()
	h.Set("Content-Type", "application/x-ndjson")
	if x.out.array {
		h.Set("Content-Type", "application/json")
	}
	h.Set("Vary", "Accept-Encoding")
	if x.out.stream { // the cursor is known at the end
		h.Set("Trailer", "Penstock-Cursor, Penstock-More")
	}
	switch {
	case takesGzip(x.r.Header.Values("Accept-Encoding")):
		h.Set("Content-Encoding", "gzip")
		z, ok := x.s.zippers.Get().(*gzip.Writer)
		if !ok {
			z = gzip.NewWriter(nil)
		}
		z.Reset(x.w)
		x.out.gzip = z
	case size >= 0 && !x.out.stream:
		h.Set("Content-Length", strconv.Itoa(size))
	}
	x.begun = true
	x.w.WriteHeader(http.StatusOK)
}

// send sends what was collected, to its last byte.
func (x *pullExchange) send(end Place, more bool) error {
	x.out.finish()
	if !x.out.stream {
		x.cursor(x.w.Header(), end, more)
	}
	if !x.begun {
		x.begin(len(*x.out.buf))
	}
	if err := x.out.flush(); err != nil {
		return err
	}
	control := http.NewResponseController(x.w)
	if err := control.SetWriteDeadline(time.Now().Add(x.s.cfg.Timeouts.Stall)); err != nil {
		return err
	}
	if x.out.gzip != nil {
		if err := x.out.gzip.Close(); err != nil {
			return err
		}
	}
	if x.out.stream {
		x.cursor(x.w.Header(), end, more)
	}
	return control.Flush()
}

// takesGzip tells whether a header Accept-Encoding lets gzip through. Source: RFC
// 9110, section 12.5.3.
func takesGzip(accept []string) bool {
	named, others := -1.0, -1.0
	for part := range strings.SplitSeq(strings.Join(accept, ","), ",") {
		coding, params, _ := strings.Cut(part, ";")
		q := 1.0
		if name, value, ok := strings.Cut(strings.TrimSpace(params), "="); ok && strings.EqualFold(name, "q") {
			var err error
			if q, err = strconv.ParseFloat(value, 64); err != nil {
				q = 0
			}
		}
		switch strings.ToLower(strings.TrimSpace(coding)) {
		case "gzip", "x-gzip":
			named = max(named, q)
		case "*":
			others = max(others, q)
		}
	}
	if named >= 0 {
		return named > 0
	}
	return others > 0
}
