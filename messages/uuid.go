package messages

import "encoding/hex"

// UUID is the id of an SQS message. Source: RFC 9562.
type UUID [16]byte

// uuidText is how long a UUID is as text, and where its hyphens are.
const uuidText = 36

func hyphen(i int) bool { return i == 8 || i == 13 || i == 18 || i == 23 }

// ParseUUID reads a UUID as SQS writes it, in lower case. It takes only what
// AppendText writes the same way again: ids are made of that text.
func ParseUUID(s string) (u UUID, ok bool) {
	if len(s) != uuidText {
		return u, false
	}
	n := 0
	for i := range len(s) {
		c := s[i]
		switch {
		case hyphen(i):
			if c != '-' {
				return u, false
			}
			continue
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'a' && c <= 'f':
			c -= 'a' - 10
		default:
			return u, false
		}
		u[n/2] = u[n/2]<<4 | c
		n++
	}
	return u, true
}

// AppendText appends the 36 characters of u.
func (u UUID) AppendText(dst []byte) []byte {
	for i, part := range [...][]byte{u[:4], u[4:6], u[6:8], u[8:10], u[10:]} {
		if i > 0 {
			dst = append(dst, '-')
		}
		dst = hex.AppendEncode(dst, part)
	}
	return dst
}

func (u UUID) String() string { return string(u.AppendText(make([]byte, 0, uuidText))) }
