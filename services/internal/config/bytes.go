package config

import (
	"errors"
	"math/big"
	"strconv"
	"strings"
)

// Bytes is a size. In a file it is a number of bytes or a number with a unit:
// 1048576, "64 MiB", "1.5GB". Units: B, kB, MB, GB, TB (powers of 1000) and KiB,
// MiB, GiB, TiB (powers of 1024), in any case. Range: 0 to 8 EiB - 1.
type Bytes int64

// Sizes for defaults.
const (
	KiB Bytes = 1 << 10
	MiB Bytes = 1 << 20
	GiB Bytes = 1 << 30
	TiB Bytes = 1 << 40
)

var units = []struct {
	name string
	size Bytes
}{
	// From large to small: String takes the first that divides.
	{"TiB", TiB},
	{"GiB", GiB},
	{"MiB", MiB},
	{"KiB", KiB},
	{"TB", 1e12},
	{"GB", 1e9},
	{"MB", 1e6},
	{"kB", 1e3},
	{"B", 1},
}

var (
	errNotBytes   = errors.New("not a size")
	errBytesRange = errors.New("does not fit: sizes go from 0 B to 8388607 TiB")
)

// ParseBytes reads a size. A fraction is rounded to the nearest byte.
func ParseBytes(s string) (Bytes, error) {
	s = strings.TrimSpace(s)
	end := strings.LastIndexAny(s, "0123456789.") + 1
	num, unit := s[:end], strings.TrimSpace(s[end:])
	size := Bytes(0)
	if unit == "" {
		size = 1
	}
	for _, u := range units {
		if strings.EqualFold(unit, u.name) {
			size = u.size
		}
	}
	// big.Rat also reads exponents and fractions like 1/3; only digits and one
	// point are sizes.
	if size == 0 || num == "" || len(num) > 40 || strings.Trim(num, "0123456789.") != "" {
		return 0, errNotBytes
	}
	r, ok := new(big.Rat).SetString(num)
	if !ok {
		return 0, errNotBytes
	}
	r.Mul(r, new(big.Rat).SetInt64(int64(size)))
	r.Add(r, big.NewRat(1, 2))
	n := new(big.Int).Quo(r.Num(), r.Denom())
	if !n.IsInt64() {
		return 0, errBytesRange
	}
	return Bytes(n.Int64()), nil
}

// String prints the size with the largest unit that loses nothing; [ParseBytes]
// reads it back.
func (b Bytes) String() string {
	for _, u := range units {
		if b != 0 && b%u.size == 0 {
			return strconv.FormatInt(int64(b/u.size), 10) + " " + u.name
		}
	}
	return "0 B"
}

// MarshalText implements [encoding.TextMarshaler].
func (b Bytes) MarshalText() ([]byte, error) { return []byte(b.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (b *Bytes) UnmarshalText(text []byte) error {
	n, err := ParseBytes(string(text))
	if err == nil {
		*b = n
	}
	return err
}
