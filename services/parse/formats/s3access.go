package formats

import (
	"bytes"
	"strings"

	"github.com/penstock/penstock/services/internal/framing"
)

func init() {
	define("s3access", "AWS S3 server access logs.", shape{
		framing: func([]byte) framing.Framing { return lines },
		sniff:   isS3Access,
	}, func() S3AccessConfig { return S3AccessConfig{} }, openS3Access)
}

// S3AccessConfig configures the format s3access.
type S3AccessConfig struct {
	// KeepRaw adds the line itself to each document, under the key raw.
	KeepRaw bool `yaml:"keep_raw"`
}

// s3AccessLayout is the layout of lines. Old ones end with the version id.
// Source: Amazon S3 User Guide, server access log format.
var s3AccessLayout = newFixed("an S3 access log line", "cloud.aws.s3.access", 18, parseCommonTime, []fixedField{
	{"bucket_owner", word},
	{"bucket", word},
	{"time", when},
	{"remote_ip", word},
	{"requester", word},
	{"request_id", word},
	{"operation", word},
	{"key", word},
	{"request_uri", word},
	{"http_status", amount},
	{"error_code", word},
	{"bytes_sent", amount},
	{"object_size", amount},
	{"total_time", amount},
	{"turn_around_time", amount},
	{"referer", word},
	{"user_agent", word},
	{"version_id", word},
	{"host_id", word},
	{"signature_version", word},
	{"cipher_suite", word},
	{"authentication_type", word},
	{"host_header", word},
	{"tls_version", word},
	{"access_point_arn", word},
	{"acl_required", word},
	{"source_region", where},
})

// openS3Access opens the format. Times are when the request came in. The key of an
// object tells account and region where the logs are partitioned.
func openS3Access(c S3AccessConfig, _ Deps) (Format, error) {
	return Format{
		New: func() Decoder {
			return &fixed{keepRaw: c.KeepRaw, layout: func([]byte) *fixedLayout { return s3AccessLayout }}
		},
		Place: s3AccessPlace,
		Base:  "cloud.aws.s3",
		Grows: 3,
	}, nil
}

// s3AccessPlace reads [prefix]<account>/<region>/<bucket>/<YYYY>/<MM>/<DD>/<name>.
func s3AccessPlace(key string) (account, region string) {
	parts := strings.Split(key, "/")
	n := len(parts) - 7
	if n < 0 {
		return "", ""
	}
	account, region = parts[n], parts[n+1]
	if len(account) > 12 { // the prefix needs no slash behind it
		account = account[len(account)-12:]
	}
	if !isAccount(account) || !isRegion(region) {
		return "", ""
	}
	return account, region
}

// isS3Access goes by the first line: keys do not tell. The line begins with the
// canonical id of an owner, a bucket and a time in brackets.
func isS3Access(_ string, head []byte) bool {
	const owner = 64 // hexadecimal digits
	line := firstLine(head)
	if len(line) < owner+1 || line[owner] != ' ' {
		return false
	}
	for _, b := range line[:owner] {
		if hex(b) < 0 {
			return false
		}
	}
	bucket, rest, ok := bytes.Cut(line[owner+1:], []byte(" ["))
	if !ok || len(bucket) == 0 || bytes.IndexByte(bucket, ' ') >= 0 {
		return false
	}
	end := bytes.IndexByte(rest, ']')
	if end < 0 {
		return false
	}
	_, ok = parseCommonTime(rest[:end])
	return ok
}

// parseCommonTime reads 05/Jan/2026:07:44:54 +0000 as Unix ns.
func parseCommonTime(b []byte) (ns int64, ok bool) {
	const size = len("05/Jan/2026:07:44:54 +0000")
	if len(b) != size || b[2] != '/' || b[6] != '/' || b[11] != ':' || b[20] != ' ' {
		return 0, false
	}
	const months = "JanFebMarAprMayJunJulAugSepOctNovDec"
	month := strings.Index(months, string(b[3:6]))
	if month < 0 || month%3 != 0 {
		return 0, false
	}
	month = month/3 + 1
	// As RFC 3339, which checks the rest.
	var text [len("2026-01-05T07:44:54+0000")]byte
	copy(text[0:], b[7:11])
	text[4], text[5], text[6], text[7] = '-', byte('0'+month/10), byte('0'+month%10), '-'
	copy(text[8:], b[0:2])
	text[10] = 'T'
	copy(text[11:], b[12:20])
	copy(text[19:], b[21:26])
	return parseTime(text[:])
}
