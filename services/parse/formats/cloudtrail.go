package formats

import (
	"bytes"
	"strconv"
	"strings"

	"github.com/penstock/penstock/services/internal/framing"
)

func init() {
	define("cloudtrail", "AWS CloudTrail log files, Insights included.", shape{
		framing: cloudTrailFraming,
		sniff:   isCloudTrail,
		skip:    skipDigest,
	}, func() CloudTrailConfig { return CloudTrailConfig{} }, openCloudTrail)
}

// CloudTrailConfig configures the format cloudtrail. It has no keys.
type CloudTrailConfig struct{}

// cloudTrailType is the event type without the service, cloudTrailTable the one of
// all events without auto_event_type. Source: features DEV-15.
const (
	cloudTrailType  = "cloud.aws.cloudtrail"
	cloudTrailTable = cloudTrailType + ".events"
)

// The slots of the values that are read from a record.
const (
	ctID = iota
	ctTime
	ctSource
	ctRegion
	ctAccount
	ctIdentityAccount
	ctVersion
	ctInsight
	ctType
)

var cloudTrailPaths = [...][]string{
	ctID:              {"eventID"},
	ctTime:            {"eventTime"},
	ctSource:          {"eventSource"},
	ctRegion:          {"awsRegion"},
	ctAccount:         {"recipientAccountId"},
	ctIdentityAccount: {"userIdentity", "accountId"},
	ctVersion:         {"eventVersion"},
	ctInsight:         {"insightDetails"},
	ctType:            {"eventType"},
}

func openCloudTrail(_ CloudTrailConfig, deps Deps) (Format, error) {
	return Format{
		New: func() Decoder {
			return &cloudTrail{
				scan: newScanner(cloudTrailPaths[:]...), types: newTypeNamer(deps.Types, cloudTrailType),
				versions: newVersion(isCloudTrailVersion), kinds: newType(isCloudTrailKind),
			}
		},
		Place: cloudTrailPlace,
		Base:  cloudTrailType, Table: cloudTrailTable,
	}, nil
}

// cloudTrail decodes CloudTrail records.
//
//   - id: eventID. sharedEventID is no id: several accounts have the same.
//   - time: eventTime.
//   - type: cloud.aws.cloudtrail.<first label of eventSource>; insights, which
//     have no eventSource of their own, are cloud.aws.cloudtrail.insight.
//   - account: recipientAccountId, else userIdentity.accountId, else the key's.
//   - region: awsRegion, else the key's.
//
// A value of another JSON type than documented counts as missing, except that
// account numbers may be numbers.
//
// Source: formats F-9; AWS CloudTrail User Guide, record contents.
type cloudTrail struct {
	scan             *scanner
	types            *typeNamer
	accounts, places names
	id               [2][]byte
	versions, kinds  judge
	news             []News
}

var (
	// kindCloudTrail begins the ids of CloudTrail events, however they arrive.
	kindCloudTrail = []byte("cloudtrail")
	insight        = []byte("insight")
)

// isCloudTrailVersion tells whether a version of records is known: 1.0 to 1.11.
// Source: AWS CloudTrail User Guide, record contents, eventVersion.
func isCloudTrailVersion(version []byte) bool {
	const newest = 11
	minor, ok := bytes.CutPrefix(version, []byte("1."))
	n, err := strconv.Atoi(string(minor))
	return ok && err == nil && n <= newest
}

// isCloudTrailKind tells whether a kind of records is known.
// Source: AWS CloudTrail User Guide, record contents, eventType.
func isCloudTrailKind(kind []byte) bool {
	switch string(kind) {
	case "AwsApiCall", "AwsServiceEvent", "AwsConsoleAction", "AwsConsoleSignIn", "AwsConsoleSignin", "AwsVpceEvent", "AwsVpceEvents", "AwsCloudTrailInsight":
		return true
	}
	return false
}

// Decode implements Decoder.
func (c *cloudTrail) Decode(rec []byte, d *Doc) error {
	s := c.scan
	start, end, why, at := s.scan(rec)
	if why != "" {
		return badJSON(rec, why, at)
	}
	if rec[start] != '{' {
		return errObject.New(nil, "read a CloudTrail record of %d bytes: it is no JSON object", len(rec))
	}
	*d = Doc{Body: rec[start:end], Offset: start}
	if id := s.textAt(rec, ctID); len(id) > 0 {
		c.id = [...][]byte{kindCloudTrail, id}
		d.ID, d.HasID = newID(c.id[:]...), true
	} else {
		d.Odd |= NoID
	}
	switch s.found[ctTime].kind {
	case absent:
		d.Odd |= NoTime
	default:
		if d.Time, d.HasTime = parseTime(s.textAt(rec, ctTime)); !d.HasTime {
			d.Odd |= BadTime
		}
	}
	source := s.textAt(rec, ctSource)
	if dot := bytes.IndexByte(source, '.'); dot >= 0 {
		source = source[:dot]
	}
	if source == nil && s.found[ctInsight].kind != absent {
		source = insight
	}
	var odd Odd
	d.Type, odd = c.types.of(source)
	d.Odd |= odd
	if d.Account = c.accounts.of(s.value(rec, ctAccount)); d.Account == "" {
		d.Account = c.accounts.of(s.value(rec, ctIdentityAccount))
	}
	d.Region = c.places.of(s.textAt(rec, ctRegion))
	version := s.textAt(rec, ctVersion)
	news, isNew := c.versions.meet(c.news[:0], version)
	if isNew && !isFirstMajor(version) {
		d.Odd |= NewVersion
	}
	c.news, _ = c.kinds.meet(news, s.textAt(rec, ctType))
	d.New = c.news
	if !s.valid(rec) {
		d.Odd |= BadUTF8
	}
	return nil
}

// cloudTrailPlace reads the account and the region off
// [prefix/]AWSLogs/[o-orgid/]<account>/CloudTrail[-Insight]/<region>/...
func cloudTrailPlace(key string) (account, region string) {
	before, after, ok := strings.Cut(key, "/CloudTrail/")
	if !ok {
		if before, after, ok = strings.Cut(key, "/CloudTrail-Insight/"); !ok {
			return "", ""
		}
	}
	account = before[strings.LastIndexByte(before, '/')+1:]
	if len(account) != 12 || strings.Trim(account, "0123456789") != "" {
		return "", ""
	}
	region, _, ok = strings.Cut(after, "/")
	if !ok || len(region) > maxNameSize {
		return account, ""
	}
	return account, region
}

func cloudTrailFraming(head []byte) framing.Framing {
	if rec, wrapped := first(head); !wrapped && hasCloudTrailKeys(rec) {
		return framing.Framing{Kind: framing.Auto} // bare records
	}
	return framing.Framing{Kind: framing.Array, Key: "Records"}
}

// isCloudTrail goes by the key, else by the keys of the first record. Event
// notifications of S3 have almost the same ones.
func isCloudTrail(key string, head []byte) bool {
	if strings.Contains(key, "/CloudTrail/") || strings.Contains(key, "/CloudTrail-Insight/") ||
		strings.Contains(key, "/CloudTrail-Digest/") || isDigest(head) {
		return true
	}
	rec, _ := first(head)
	return hasCloudTrailKeys(rec)
}

func hasCloudTrailKeys(rec []byte) bool {
	hits, foreign := 0, false
	peek(rec, func(key string, rest []byte) bool {
		switch key {
		case "eventVersion", "eventTime", "eventName", "awsRegion", "userIdentity", "eventID", "recipientAccountId", "sourceIPAddress":
			hits++
		case "eventSource":
			hits++
			foreign = foreign || bytes.HasPrefix(rest, []byte(`"aws:`))
		case "s3", "dynamodb", "kinesis":
			foreign = true
		}
		return true
	})
	return hits >= 3 && !foreign
}

const skipCodeDigest = "parse.cloudtrail_digest"

// skipDigest finds digest files, which list log files and hold no events.
func skipDigest(key string, head []byte) string {
	if strings.Contains(key, "/CloudTrail-Digest/") || isDigest(head) {
		return skipCodeDigest
	}
	return ""
}

func isDigest(head []byte) bool {
	hits := 0
	peek(head, func(key string, _ []byte) bool {
		if key == "awsAccountId" || key == "digestStartTime" {
			hits++
		}
		return hits < 2
	})
	return hits == 2
}
