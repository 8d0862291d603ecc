package formats

import (
	"bytes"
	"strings"
)

func init() {
	define("route53resolver", "AWS Route 53 Resolver query logs.", shape{
		framing: anyJSON,
		sniff: func(key string, head []byte) bool {
			return strings.Contains(key, "/vpcdnsquerylogs/") ||
				hasKeys(head, 4, "query_timestamp", "query_name", "query_type", "query_class", "rcode", "srcids")
		},
	}, func() Route53ResolverConfig { return Route53ResolverConfig{} }, openRoute53Resolver)
}

// Route53ResolverConfig configures the format route53resolver. It has no keys.
type Route53ResolverConfig struct{}

// The event type of resolver query logs.
const (
	route53Base  = "cloud.aws.route53"
	route53Table = route53Base + ".resolver"
)

// The slots of the values that are read from a record.
const (
	r53Time = iota
	r53Account
	r53Region
	r53Version
)

var route53Paths = [...][]string{
	r53Time:    {"query_timestamp"},
	r53Account: {"account_id"},
	r53Region:  {"region"},
	r53Version: {"version"},
}

func openRoute53Resolver(_ Route53ResolverConfig, _ Deps) (Format, error) {
	return Format{
		New: func() Decoder {
			r := &route53Resolver{newObjectReader("query log record", route53Paths[:]...)}
			r.versions = newVersion(isFirstMajor)
			return r
		},
		Place: func(key string) (account, region string) { return awsPlace(key, "vpcdnsquerylogs") },
		Base:  route53Base, Table: route53Table,
	}, nil
}

// route53Resolver decodes query log records of the Route 53 Resolver. Their type is
// cloud.aws.route53.resolver.
//
//   - id: none; several equal queries within a second are several events.
//   - time: query_timestamp.
//   - account, region: account_id and region, else the key's account.
//
// Source: Amazon Route 53 Developer Guide, values that appear in query logs.
type route53Resolver struct {
	objectReader
}

// isFirstMajor tells whether a version is 1.x.
func isFirstMajor(version []byte) bool { return bytes.HasPrefix(version, []byte("1.")) }

// Decode implements Decoder.
func (r *route53Resolver) Decode(rec []byte, d *Doc) error {
	if err := r.object(rec, d); err != nil {
		return err
	}
	d.Type = route53Table
	r.time(rec, d, r53Time)
	d.Account, d.Region = r.account(rec, r53Account), r.region(rec, r53Region)
	r.version(rec, d, r53Version)
	return nil
}
