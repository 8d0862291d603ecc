package formats

import (
	"bytes"
	"strings"

	"github.com/penstock/penstock/services/internal/framing"
)

// This file is what the formats of AWS log files share.

// awsPlace reads account and region off keys of log files of service, a folder
// name:
//
//	[prefix/]AWSLogs/[o-orgid/]<account>/<service>/<region>/...
//	[prefix/]AWSLogs/aws-account-id=<account>/aws-service=<service>/aws-region=<region>/...
func awsPlace(key, service string) (account, region string) {
	before, after, ok := strings.Cut(key, "/"+service+"/")
	if !ok {
		before, after, ok = strings.Cut(key, "/aws-service="+service+"/")
	}
	if !ok {
		return "", ""
	}
	account = strings.TrimPrefix(before[strings.LastIndexByte(before, '/')+1:], "aws-account-id=")
	if !isAccount(account) {
		return "", ""
	}
	region, _, ok = strings.Cut(after, "/")
	region = strings.TrimPrefix(region, "aws-region=")
	if !ok || !isRegion(region) {
		return account, ""
	}
	return account, region
}

// isAccount tells whether s is an account number.
func isAccount(s string) bool { return len(s) == 12 && strings.Trim(s, "0123456789") == "" }

// isRegion tells whether s looks like the name of a region, e.g. us-gov-west-1.
func isRegion(s string) bool {
	if len(s) < 8 || len(s) > 32 || strings.Count(s, "-") < 2 || s[len(s)-1]-'0' > 9 {
		return false
	}
	return strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}

// firstLine returns the first line of head without its end and without a byte
// order mark before it.
func firstLine(head []byte) []byte {
	line, _, _ := bytes.Cut(bytes.TrimPrefix(head, []byte("\ufeff")), []byte("\n"))
	return bytes.TrimSuffix(line, []byte("\r"))
}

// isObject tells whether the first thing in head is a JSON object. So do the rows
// of a parquet file begin, too.
func isObject(head []byte) bool {
	head = trimSpace(head)
	return len(head) > 0 && head[0] == '{'
}

// values is the framing of JSON objects, a line each.
var values = framing.Framing{Kind: framing.Values}

// countKeys counts the keys of the object that begins head for which is holds.
func countKeys(head []byte, is func(key string) bool) (n int) {
	peek(head, func(key string, _ []byte) bool {
		if is(key) {
			n++
		}
		return true
	})
	return n
}

// rowReader reads records that are JSON objects with one value per column: rows of
// parquet files, and log files written as JSON. Not for concurrent use.
type rowReader struct {
	// column makes the column of a key.
	column func(key string) column
	scan   *scanner
	known  map[string]*column
	text   []byte
}

const maxRowKeys = 4096 // keys of rows that a decoder remembers

func newRowReader(of func(key string) column) *rowReader {
	return &rowReader{column: of, scan: newScanner(), known: map[string]*column{}}
}

// read hands each value of the row rec to field: the text of strings, and numbers
// as written. What is neither is in json. nulls are left out.
func (r *rowReader) read(rec []byte, field func(c *column, v []byte), json func(c *column, v []byte)) (odd Odd, err error) {
	start, end, why, at := r.scan.scan(rec)
	if why != "" {
		return 0, badJSON(rec, why, at)
	}
	rec = rec[start:end]
	if rec[0] != '{' {
		return 0, errObject.New(nil, "read a row of %d bytes: it is no JSON object", len(rec))
	}
	if !r.scan.valid(rec) {
		odd = BadUTF8
	}
	for i := 1; ; {
		i += space(rec[i:], 0)
		if rec[i] == '}' {
			return odd, nil
		}
		// The row is valid, so that there is no need to look for the end of rec.
		stop, escaped, _ := readText(rec, i+1)
		c := r.of(rec[i+1:stop], escaped)
		i = stop + 1 + space(rec[stop+1:], 0) + 1 // the colon
		i += space(rec[i:], 0)
		switch b := rec[i]; {
		case b == '"':
			stop, escaped, _ = readText(rec, i+1)
			v := rec[i+1 : stop]
			if escaped {
				r.text = unescape(r.text[:0], v)
				v = r.text
			}
			field(c, v)
			i = stop + 1
		case b == '-' || b-'0' <= 9:
			stop = digits(rec, i)
			field(c, rec[i:stop])
			i = stop
		case b == 'n':
			i += len("null")
		default:
			n := skip(rec[i:])
			json(c, bytes.TrimRight(rec[i:i+n], " \t\r\n"))
			i += n
		}
		if i += space(rec[i:], 0); rec[i] == ',' {
			i++
		}
	}
}

// of returns the column of a key as it stands in a row.
func (r *rowReader) of(key []byte, escaped bool) *column {
	c, ok := r.known[string(key)]
	if ok {
		return c
	}
	name := key
	if escaped {
		name = unescape(nil, key)
	}
	made := r.column(string(name))
	if len(r.known) >= maxRowKeys {
		clear(r.known)
	}
	r.known[string(key)] = &made
	return &made
}

// parseSeconds reads seconds since 1970, as [parseEpoch] does.
func parseSeconds(b []byte) (ns int64, ok bool) {
	const most = 9 // digits that certainly fit, and one more that today's times have
	if len(b) == 0 || len(b) > most+1 || !isInteger(b) {
		return parseEpoch(b, digitsBelow[Seconds])
	}
	var n int64
	for _, c := range b {
		n = 10*n + int64(c-'0')
	}
	return join(n, 0)
}
