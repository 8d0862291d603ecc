package formats

import (
	"math"
	"math/bits"
)

// TimeUnit says how a format writes its times.
type TimeUnit string

// The time units.
const (
	// RFC3339 is text: 2026-01-05T07:44:54.123Z.
	RFC3339 TimeUnit = "rfc3339"
	// Seconds and the others are numbers since 1970, as JSON numbers or in quotes.
	Seconds      TimeUnit = "s"
	Milliseconds TimeUnit = "ms"
	Microseconds TimeUnit = "us"
	Nanoseconds  TimeUnit = "ns"
)

// Values lists what the configuration may hold.
func (TimeUnit) Values() []string { return []string{"rfc3339", "s", "ms", "us", "ns"} }

// digitsBelow is how many decimal digits of nanoseconds a unit has below its point.
var digitsBelow = map[TimeUnit]int{Seconds: 9, Milliseconds: 6, Microseconds: 3, Nanoseconds: 0}

// parseTime reads an RFC 3339 time as Unix ns: with T or a space, with 0 to 9
// digits of fraction (more are cut), with Z or an offset. It does not accept
// times without a zone, nor those that Unix ns cannot hold (before 1677-09-21 and
// after 2262-04-11). Second 60 is the one after 59. Source: RFC 3339, formats F-0.
func parseTime(b []byte) (ns int64, ok bool) {
	const shortest = len("2006-01-02T15:04:05Z")
	if len(b) < shortest || b[4] != '-' || b[7] != '-' || b[10]|0x20 != 't' && b[10] != ' ' || b[13] != ':' || b[16] != ':' {
		return 0, false
	}
	year := 100*two(b, 0) + two(b, 2)
	month, day := two(b, 5), two(b, 8)
	hour, minute, second := two(b, 11), two(b, 14), two(b, 17)
	if year < 0 || month < 1 || month > 12 || day < 1 || day > daysIn(year, month) ||
		hour < 0 || hour > 23 || minute < 0 || minute > 59 || second < 0 || second > 60 {
		return 0, false
	}
	i := 19
	var fraction int64
	if b[i] == '.' {
		scale := int64(1e9)
		for i++; i < len(b) && b[i]-'0' <= 9; i++ {
			if scale > 1 {
				scale /= 10
				fraction += int64(b[i]-'0') * scale
			}
		}
		if i == 20 {
			return 0, false
		}
	}
	offset, ok := parseZone(b[i:])
	if !ok {
		return 0, false
	}
	seconds := int64(days(year, month, day))*86400 + int64(hour*3600+minute*60+second-offset)
	return join(seconds, fraction)
}

// join makes Unix ns, where they fit.
func join(seconds, fraction int64) (int64, bool) {
	const most = math.MaxInt64/1_000_000_000 - 1
	if seconds < -most || seconds > most {
		return 0, false
	}
	return seconds*1_000_000_000 + fraction, true
}

// parseZone reads Z or an offset (+01:00, +0100, +01) as seconds east of UTC.
func parseZone(b []byte) (seconds int, ok bool) {
	if len(b) == 1 {
		return 0, b[0]|0x20 == 'z'
	}
	if len(b) < 3 || b[0] != '+' && b[0] != '-' {
		return 0, false
	}
	hour, minute := two(b, 1), 0
	switch {
	case len(b) == 3:
	case len(b) == 5:
		minute = two(b, 3)
	case len(b) == 6 && b[3] == ':':
		minute = two(b, 4)
	default:
		return 0, false
	}
	if hour < 0 || hour > 23 || minute < 0 || minute > 59 {
		return 0, false
	}
	seconds = hour*3600 + minute*60
	if b[0] == '-' {
		seconds = -seconds
	}
	return seconds, true
}

// two reads two digits. Anything else gives a number so far below zero that no
// sum in parseTime makes it good again.
func two(b []byte, i int) int {
	tens, units := int(b[i]-'0'), int(b[i+1]-'0')
	if tens > 9 || units > 9 {
		return -1_000_000
	}
	return 10*tens + units
}

// days counts the days from 1970-01-01 to a date of the Gregorian calendar.
// The year is taken to begin in March, so that the leap day comes last.
func days(year, month, day int) int {
	if month <= 2 {
		year--
		month += 12
	}
	era := year / 400
	if year < 0 {
		era = -1
	}
	year -= era * 400
	dayOfYear := (153*(month-3)+2)/5 + day - 1
	return era*146097 + year*365 + year/4 - year/100 + dayOfYear - 719468
}

func daysIn(year, month int) int {
	switch month {
	case 4, 6, 9, 11:
		return 30
	case 2:
		if year%4 == 0 && (year%100 != 0 || year%400 == 0) {
			return 29
		}
		return 28
	}
	return 31
}

// parseEpoch reads a decimal number of a unit since 1970 as Unix ns, exactly:
// never through a float. below is digitsBelow of the unit; what is finer than a
// nanosecond is cut. Source: formats F-0.
func parseEpoch(b []byte, below int) (ns int64, ok bool) {
	negative := len(b) > 0 && b[0] == '-'
	if negative {
		b = b[1:]
	}
	if len(b) == 0 || b[0]-'0' > 9 || digits(b, 0) != len(b) {
		return 0, false
	}
	// First where the point is once the exponent has moved it.
	point, exponent := run(b, 0), 0
	for i, c := range b {
		if c|0x20 == 'e' {
			if exponent, ok = parseExponent(b[i+1:]); !ok {
				return 0, false
			}
			b = b[:i]
			break
		}
	}
	keep := point + exponent + below // this many digits make the nanoseconds
	const most = 40                  // leading zeros included
	if keep > most {
		return 0, false
	}
	var sum uint64
	for i := 0; keep > 0; i++ {
		var d uint64
		if i < len(b) {
			if b[i] == '.' {
				continue
			}
			d = uint64(b[i] - '0')
		}
		high, low := bits.Mul64(sum, 10)
		if sum = low + d; high != 0 || sum > math.MaxInt64 {
			return 0, false
		}
		keep--
	}
	if negative {
		return -int64(sum), true
	}
	return int64(sum), true
}

func parseExponent(b []byte) (int, bool) {
	sign := 1
	if b[0] == '+' || b[0] == '-' {
		if b[0] == '-' {
			sign = -1
		}
		b = b[1:]
	}
	if len(b) > 3 {
		return 0, false
	}
	n := 0
	for _, c := range b {
		n = 10*n + int(c-'0')
	}
	return sign * n, true
}
