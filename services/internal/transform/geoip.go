package transform

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/oschwald/maxminddb-golang/v2"

	"github.com/penstock/penstock/services/internal/config"
	"github.com/penstock/penstock/services/internal/document"
)

// GeoIP looks up addresses in databases of the MaxMind format, e.g. GeoLite2 City
// and GeoLite2 ASN.
type GeoIP struct {
	// Databases are the files; what several tell is put together, the last one counts. They are held in memory. Required.
	Databases []string `yaml:"databases"`
	// MaxSize caps each file. Unit: bytes.
	MaxSize config.Bytes `yaml:"max_size"`
}

// SetDefaults implements [config.Defaulter].
func (g *GeoIP) SetDefaults() { g.MaxSize = 512 * config.MiB }

// mostDatabases bounds the databases of one rule.
const mostDatabases = 4

// Validate reports every problem, each with the key to change.
func (g GeoIP) Validate() error {
	var p config.Problems
	p.Need(len(g.Databases) >= 1 && len(g.Databases) <= mostDatabases, "databases", "name 1 to 4 files, e.g. /var/lib/GeoIP/GeoLite2-City.mmdb")
	for i, name := range g.Databases {
		p.Need(name != "", fmt.Sprintf("databases[%d]", i), "name a file, e.g. /var/lib/GeoIP/GeoLite2-City.mmdb")
	}
	p.Need(g.MaxSize > 0, "max_size", "use 1 B or more, e.g. 512 MiB")
	return p.Err()
}

// geo knows addresses.
type geo struct {
	databases []*file[*maxminddb.Reader]
	cache     atomic.Pointer[geoCache]
}

// geoCache holds the objects made of records, by where those stand in the databases:
// many networks share a record, and decoding one costs more than finding it.
type geoCache struct {
	readers [mostDatabases]*maxminddb.Reader
	objects sync.Map // of [mostDatabases]uintptr to []byte
	size    atomic.Int64
}

// mostCached bounds the cache; when it is full it begins anew.
const mostCached = 50_000

func newGeo(cfg GeoIP, files *Files, every time.Duration) (*geo, error) {
	g := &geo{}
	for _, name := range cfg.Databases {
		f, err := open(files, "mmdb", name, int64(cfg.MaxSize), every, readDatabase)
		if err != nil {
			return nil, err
		}
		g.databases = append(g.databases, f)
	}
	g.cache.Store(&geoCache{})
	return g, nil
}

// mostObject bounds what is added of a record, in bytes: the cache holds mostCached of
// them. A record of GeoIP2 City has some hundred.
const mostObject = 8 << 10

// mostNetworks bounds the networks in which the first record is looked for. All that
// have none are counted as well, since the nodes of a bad tree may lead to each other
// on more ways than can be gone.
const mostNetworks = 1 << 16

// readDatabase opens a database and decodes its first record, so that one of another
// layout is found out at once.
func readDatabase(data []byte) (*maxminddb.Reader, int, error) {
	r, err := maxminddb.OpenBytes(data)
	if err != nil {
		return nil, 0, err
	}
	looked := 0
	for network := range r.Networks(maxminddb.IncludeNetworksWithoutData(), maxminddb.IncludeAliasedNetworks()) {
		if looked++; looked > mostNetworks {
			break
		}
		if network.Err() == nil && !network.Found() {
			continue
		}
		if err := network.Decode(&place{}); err != nil {
			return nil, 0, fmt.Errorf("a database of type %s is not laid out as GeoIP2 databases are: %w", r.Metadata.DatabaseType, err)
		}
		break
	}
	return r, int(r.Metadata.NodeCount), nil
}

// place is what the databases tell of a network.
// Source: MaxMind DB file format 2.0; GeoIP2 database documentation.
type place struct {
	Continent struct {
		Code string `maxminddb:"code"`
	} `maxminddb:"continent"`
	Country      named   `maxminddb:"country"`
	Subdivisions []named `maxminddb:"subdivisions"`
	City         named   `maxminddb:"city"`
	Location     struct {
		Latitude  *float64 `maxminddb:"latitude"`
		Longitude *float64 `maxminddb:"longitude"`
		TimeZone  string   `maxminddb:"time_zone"`
	} `maxminddb:"location"`
	ASN             uint32 `maxminddb:"autonomous_system_number"`
	ASNOrganization string `maxminddb:"autonomous_system_organization"`
}

type named struct {
	Code  string `maxminddb:"iso_code"`
	Names struct {
		English string `maxminddb:"en"`
	} `maxminddb:"names"`
}

// geoObject is what goes into the document. Its names are those of the fields geo.*
// and as.* of the Elastic Common Schema 8.
type geoObject struct {
	Continent    string       `json:"continent_code,omitempty"`
	Country      string       `json:"country_iso_code,omitempty"`
	CountryName  string       `json:"country_name,omitempty"`
	Region       string       `json:"region_iso_code,omitempty"`
	RegionName   string       `json:"region_name,omitempty"`
	City         string       `json:"city_name,omitempty"`
	Location     *coordinates `json:"location,omitempty"`
	TimeZone     string       `json:"timezone,omitempty"`
	ASN          uint32       `json:"asn,omitempty"`
	Organization string       `json:"organization,omitempty"`
}

type coordinates struct {
	Lat float64 `json:"lat"`
	Lon float64 `json:"lon"`
}

func (p *place) object() ([]byte, error) {
	o := geoObject{
		Continent: p.Continent.Code, Country: p.Country.Code, CountryName: p.Country.Names.English, City: p.City.Names.English,
		TimeZone: p.Location.TimeZone, ASN: p.ASN, Organization: p.ASNOrganization,
	}
	if len(p.Subdivisions) > 0 {
		o.RegionName = p.Subdivisions[0].Names.English
		if o.Region = p.Subdivisions[0].Code; o.Region != "" && o.Country != "" {
			o.Region = o.Country + "-" + o.Region // ISO 3166-2
		}
	}
	if lat, lon := p.Location.Latitude, p.Location.Longitude; lat != nil && lon != nil {
		o.Location = &coordinates{*lat, *lon}
	}
	return json.Marshal(o)
}

// about implements knowledge.
func (g *geo) about(w *enrichWork, v []byte) ([]byte, Outcome) {
	if document.KindOf(v) != document.String {
		return nil, Skipped
	}
	addr, ok := addressOf(string(w.scalar(v)))
	if !ok || !public(addr) {
		return nil, Skipped
	}
	cache := g.current()
	var at [mostDatabases]uintptr
	var found [mostDatabases]maxminddb.Result
	any := false
	for i := range g.databases {
		found[i] = cache.readers[i].Lookup(addr)
		if found[i].Found() {
			at[i], any = found[i].Offset()+1, true
		}
	}
	if !any {
		return nil, Unknown
	}
	if object, ok := cache.objects.Load(at); ok {
		return known(object.([]byte))
	}
	var p place
	for i := range g.databases {
		if at[i] > 0 && found[i].Decode(&p) != nil {
			return nil, Unknown // of a layout that GeoIP2 databases do not have
		}
	}
	object, err := p.object()
	if err != nil || len(object) > mostObject {
		return nil, Unknown
	}
	if cache.size.Add(1) > mostCached {
		g.cache.CompareAndSwap(cache, &geoCache{readers: cache.readers})
	}
	cache.objects.Store(at, object)
	return known(object)
}

// known tells a record that says something from one that does not.
func known(object []byte) ([]byte, Outcome) {
	if len(object) <= len("{}") {
		return nil, Unknown
	}
	return object, Added
}

// current returns the cache for the databases as they are now.
func (g *geo) current() *geoCache {
	cache := g.cache.Load()
	changed := false
	var readers [mostDatabases]*maxminddb.Reader
	for i, f := range g.databases {
		readers[i] = f.get()
		changed = changed || readers[i] != cache.readers[i]
	}
	if changed {
		cache = &geoCache{readers: readers}
		g.cache.Store(cache)
	}
	return cache
}

// addressOf reads an address, with or without a port behind it.
func addressOf(s string) (netip.Addr, bool) {
	if a, err := netip.ParseAddr(s); err == nil {
		return a.Unmap().WithZone(""), true
	}
	if a, err := netip.ParseAddrPort(s); err == nil {
		return a.Addr().Unmap().WithZone(""), true
	}
	return netip.Addr{}, false
}

// shared is the address space between carriers and their customers, RFC 6598.
var shared = netip.MustParsePrefix("100.64.0.0/10")

// public tells whether an address is one of the Internet.
func public(a netip.Addr) bool {
	return a.IsGlobalUnicast() && !a.IsPrivate() && !shared.Contains(a)
}
