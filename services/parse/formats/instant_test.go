package formats

import (
	"math/big"
	"strings"
	"testing"
	"time"
)

// covers: F-0 (time rules), DEV-146
func TestParseTime(t *testing.T) {
	tests := []struct {
		in   string
		want string // as time.RFC3339Nano in UTC, "" for refused
	}{
		{"2026-01-05T07:44:54Z", "2026-01-05T07:44:54Z"},
		{"2026-01-05 07:44:54Z", "2026-01-05T07:44:54Z"},
		{"2026-01-05t07:44:54z", "2026-01-05T07:44:54Z"},
		{"2026-01-05T07:44:54.1Z", "2026-01-05T07:44:54.1Z"},
		{"2026-01-05T07:44:54.279Z", "2026-01-05T07:44:54.279Z"},
		{"2026-01-05T07:44:54.123456789Z", "2026-01-05T07:44:54.123456789Z"},
		{"2026-01-05T07:44:54.1234567899Z", "2026-01-05T07:44:54.123456789Z"},
		{"2026-01-05T07:44:54+01:00", "2026-01-05T06:44:54Z"},
		{"2026-01-05T07:44:54.5-0730", "2026-01-05T15:14:54.5Z"},
		{"2026-01-05T07:44:54+02", "2026-01-05T05:44:54Z"},
		{"2024-02-29T00:00:00Z", "2024-02-29T00:00:00Z"},
		{"2000-02-29T00:00:00Z", "2000-02-29T00:00:00Z"},
		{"2016-12-31T23:59:60Z", "2017-01-01T00:00:00Z"},
		{"1969-12-31T23:59:59.5Z", "1969-12-31T23:59:59.5Z"},
		{"1700-03-01T00:00:00Z", "1700-03-01T00:00:00Z"},
		{"2262-01-01T00:00:00Z", "2262-01-01T00:00:00Z"},
		{"", ""},
		{"2026-01-05", ""},
		{"2026-01-05T07:44:54", ""},
		{"2026-01-05T07:44:54.Z", ""},
		{"2026-01-05T07:44:54.5", ""},
		{"2026-01-05T07:44:54Zx", ""},
		{"2026-01-05T07:44:54+1:00", ""},
		{"2026-01-05T07:44:54+24:00", ""},
		{"2026-01-05T07:44:54+01:60", ""},
		{"2026-01-05_07:44:54Z", ""},
		{"2026-13-05T07:44:54Z", ""},
		{"2026-00-05T07:44:54Z", ""},
		{"2026-01-32T07:44:54Z", ""},
		{"2026-01-00T07:44:54Z", ""},
		{"2025-02-29T00:00:00Z", ""},
		{"1900-02-29T00:00:00Z", ""},
		{"2026-04-31T00:00:00Z", ""},
		{"2026-01-05T24:00:00Z", ""},
		{"2026-01-05T07:60:00Z", ""},
		{"2026-01-05T07:44:61Z", ""},
		{"2o26-01-05T07:44:54Z", ""},
		{"20a6-01-05T07:44:54Z", ""},
		{"2026-01-05T07:4x:54Z", ""},
		{"0000-01-01T00:00:00Z", ""},
		{"9999-01-01T00:00:00Z", ""},
		{"2263-01-01T00:00:00Z", ""},
	}
	for _, tt := range tests {
		ns, ok := parseTime([]byte(tt.in))
		got := ""
		if ok {
			got = time.Unix(0, ns).UTC().Format(time.RFC3339Nano)
		}
		if got != tt.want {
			t.Errorf("parseTime(%q) = %q, want %q", tt.in, got, tt.want)
		}
	}
}

func TestParseTimeEveryDay(t *testing.T) {
	day := time.Date(1678, 1, 1, 12, 0, 0, 0, time.UTC)
	for ; day.Year() < 2262; day = day.AddDate(0, 0, 1) {
		if ns, ok := parseTime(day.AppendFormat(nil, time.RFC3339)); !ok || ns != day.UnixNano() {
			t.Fatalf("parseTime(%s) = %d, %v", day, ns, ok)
		}
	}
}

// covers: F-0 (epoch rules)
func TestParseEpoch(t *testing.T) {
	tests := []struct {
		in   string
		unit TimeUnit
		want int64
		ok   bool
	}{
		{"0", Seconds, 0, true},
		{"1767599094", Seconds, 1767599094e9, true},
		{"1767599094.123456789", Seconds, 1767599094123456789, true},
		{"1767599094.1234567891", Seconds, 1767599094123456789, true},
		{"1.767599094E9", Seconds, 1767599094e9, true},
		{"17675990940e-1", Seconds, 1767599094e9, true},
		{"-1.5", Seconds, -1500000000, true},
		{"1767599094123", Milliseconds, 1767599094123e6, true},
		{"1767599094123.5", Milliseconds, 17675990941235e5, true},
		{"1767599094123456", Microseconds, 1767599094123456e3, true},
		{"1767599094123456789", Nanoseconds, 1767599094123456789, true},
		{"9223372036854775807", Nanoseconds, 1<<63 - 1, true},
		{"9223372036854775808", Nanoseconds, 0, false},
		{"9223372036.854775808", Seconds, 0, false},
		{"1767599094123", Seconds, 0, false},
		{"1e999", Seconds, 0, false},
		{"1e99999999999", Seconds, 0, false},
		{"1e-999", Seconds, 0, true},
		{"", Seconds, 0, false},
		{"-", Seconds, 0, false},
		{"--1", Seconds, 0, false},
		{"1x", Seconds, 0, false},
		{"1.", Seconds, 0, false},
		{" 1", Seconds, 0, false},
		{"2026-01-05", Seconds, 0, false},
	}
	for _, tt := range tests {
		if ns, ok := parseEpoch([]byte(tt.in), digitsBelow[tt.unit]); ns != tt.want || ok != tt.ok {
			t.Errorf("parseEpoch(%q, %s) = %d, %v, want %d, %v", tt.in, tt.unit, ns, ok, tt.want, tt.ok)
		}
	}
}

// What the standard library takes for a time is the same time here.
func FuzzParseTime(f *testing.F) {
	for _, s := range []string{"2026-01-05T07:44:54Z", "2026-01-05T07:44:54.123456789+01:30", "1700-02-28T00:00:00-23:59", "2026-01-05 07:44:60Z"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		ns, ok := parseTime([]byte(s))
		std, err := time.Parse(time.RFC3339Nano, s)
		if err != nil || strings.Contains(s, ",") || std.Year() < 1678 || std.Year() > 2261 {
			return
		}
		if _, offset := std.Zone(); offset <= -86400 || offset >= 86400 || len(s) < 20 || s[11] == ' ' {
			return
		}
		if strings.HasSuffix(s, ":60") { // an offset of 60 minutes, which only the library takes
			return
		}
		if !ok && s[13] == ':' {
			t.Fatalf("parseTime refuses %q", s)
		}
		if ok && ns != std.UnixNano() {
			t.Fatalf("parseTime(%q) = %d, want %d", s, ns, std.UnixNano())
		}
	})
}

// Epochs are exact: as the same sum with rational numbers.
func FuzzParseEpoch(f *testing.F) {
	f.Add("1767599094.123", uint8(9))
	f.Add("1.767599094e9", uint8(9))
	f.Add("-17675990941e2", uint8(3))
	f.Fuzz(func(t *testing.T, s string, below uint8) {
		below %= 10
		ns, ok := parseEpoch([]byte(s), int(below))
		if !ok {
			return
		}
		if _, e, _ := strings.Cut(strings.ToLower(s), "e"); len(e) > 3 {
			return // rationals of that size take too long
		}
		want, good := new(big.Rat).SetString(s)
		if !good {
			t.Fatalf("parseEpoch takes %q", s)
		}
		want.Mul(want, new(big.Rat).SetInt(new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(below)), nil)))
		cut := new(big.Int).Quo(want.Num(), want.Denom())
		if cut.Cmp(big.NewInt(ns)) != 0 {
			t.Fatalf("parseEpoch(%q, %d) = %d, want %s", s, below, ns, cut)
		}
	})
}
