package fetch

import (
	"time"

	"github.com/penstock/penstock/services/internal/config"
)

// Config configures the fetch stage. Its limits hold for every object.
// Source: formats F-0, limits.
type Config struct {
	// MaxObjects read at once. Range: 1 to 256.
	MaxObjects int `yaml:"max_objects"`
	// MaxBytesInFlight bounds the buffers of all objects that are read at once. A
	// record above 1 MiB waits until it has this to itself. Unit: bytes, at least
	// 4 MiB.
	MaxBytesInFlight config.Bytes `yaml:"max_bytes_in_flight"`
	// MaxObject is the largest object, after decompression; what comes before the
	// limit goes on, the rest is quarantined. Unit: bytes, at least 1 MiB.
	MaxObject config.Bytes `yaml:"max_object"`
	// MaxRatio is how many times larger an object may get by decompression. It is
	// judged once 32 MiB have come out. Range: 2 or more.
	MaxRatio int `yaml:"max_ratio"`
	// MaxRecord is the largest JSON value. Unit: bytes, 1 KiB to 64 MiB.
	MaxRecord config.Bytes `yaml:"max_record"`
	// MaxLine is the longest line of text formats. Unit: bytes, 1 KiB to 64 MiB.
	MaxLine config.Bytes `yaml:"max_line"`
	// MaxBadRecords of one object are quarantined one by one; with one more the
	// rest of the object is quarantined as a whole. Unit: records.
	MaxBadRecords int `yaml:"max_bad_records"`
	// MissingKeyWait is how long after its notice an object may still appear.
	// Unit: duration.
	MissingKeyWait time.Duration `yaml:"missing_key_wait"`
	// DeniedAttempts is how often an object is asked for that S3 refuses to give,
	// with growing pauses up to a minute. Unit: attempts, at least 1.
	DeniedAttempts int `yaml:"denied_attempts"`
	// TruncatedRetries is how often an object that ends too early is read again,
	// before what is whole goes on and the rest is quarantined.
	TruncatedRetries int `yaml:"truncated_retries"`
	// Resumes is how often reading goes on inside an object after the connection
	// broke, before the object is tried again as a whole.
	Resumes int `yaml:"resumes"`
}

// Defaults returns the configuration that an empty file gives.
func Defaults() Config {
	return Config{
		MaxObjects: 48, MaxBytesInFlight: 24 * config.MiB, MaxObject: 2 * config.GiB, MaxRatio: 200,
		MaxRecord: 16 * config.MiB, MaxLine: config.MiB, MaxBadRecords: 1000,
		MissingKeyWait: 5 * time.Minute, DeniedAttempts: 10, TruncatedRetries: 2, Resumes: 3,
	}
}

// Validate reports every problem, each with the key to change.
func (c Config) Validate() error {
	var p config.Problems
	p.Need(c.MaxObjects >= 1 && c.MaxObjects <= 256, "max_objects", "use 1 to 256 objects")
	p.Need(c.MaxBytesInFlight >= wholeWeight, "max_bytes_in_flight", "use 4 MiB or more: one object needs as much")
	p.Need(c.MaxObject >= config.MiB, "max_object", "use 1 MiB or more")
	p.Need(c.MaxRatio >= 2, "max_ratio", "use 2 or more, e.g. 200")
	p.Need(c.MaxRecord >= config.KiB && c.MaxRecord <= 64*config.MiB, "max_record", "use 1 KiB to 64 MiB, e.g. 16 MiB")
	p.Need(c.MaxLine >= config.KiB && c.MaxLine <= 64*config.MiB, "max_line", "use 1 KiB to 64 MiB, e.g. 1 MiB")
	p.Need(c.MaxBadRecords >= 0, "max_bad_records", "use 0 or more records")
	p.Need(c.MissingKeyWait >= 0, "missing_key_wait", "use 0s or a positive duration, e.g. 5m")
	p.Need(c.DeniedAttempts >= 1, "denied_attempts", "use 1 or more attempts")
	p.Need(c.TruncatedRetries >= 0, "truncated_retries", "use 0 or more attempts")
	p.Need(c.Resumes >= 0, "resumes", "use 0 or more attempts")
	return p.Err()
}
