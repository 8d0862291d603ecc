package formats

import (
	"github.com/penstock/penstock/services/internal/framing"
)

func init() {
	define("securityhub", "AWS Security Hub findings, in EventBridge events or by themselves.", shape{
		framing: securityHubFraming,
		sniff: func(_ string, head []byte) bool {
			if e := envelopeOf(head); e.is {
				return e.source == sourceSecurityHub
			}
			return hasKeys(head, 4, "SchemaVersion", "ProductArn", "AwsAccountId", "GeneratorId", "UpdatedAt", "Resources")
		},
	}, func() SecurityHubConfig { return SecurityHubConfig{} }, openSecurityHub)
}

// SecurityHubConfig configures the format securityhub. It has no keys.
type SecurityHubConfig struct{}

// The event type of Security Hub, for whatever it sends. Source: features DEV-13.
const (
	securityHubBase  = "cloud.aws.securityhub"
	securityHubTable = securityHubBase + ".findings"
)

// securityHubFraming makes a record of each finding: a custom action sends several
// in one event.
func securityHubFraming([]byte) framing.Framing {
	return framing.Framing{Kind: framing.Auto, Explode: "detail.findings"}
}

// The slots of the values that are read from a finding, from the first one on.
const (
	fID = iota
	fProduct
	fUpdated
	fAccount
	fRegion
	fUID
	fOCSFProduct
	fModifiedText
	fModified
	fOCSFTime
	fOCSFAccount
	fOCSFRegion
	fVersion
	fSlots
)

// findingPaths are the paths of these slots below at.
func findingPaths(at ...string) [][]string {
	paths := [][]string{
		fID:           {"Id"},
		fProduct:      {"ProductArn"},
		fUpdated:      {"UpdatedAt"},
		fAccount:      {"AwsAccountId"},
		fRegion:       {"Region"},
		fUID:          {"finding_info", "uid"},
		fOCSFProduct:  {"metadata", "product", "uid"},
		fModifiedText: {"finding_info", "modified_time_dt"},
		fModified:     {"finding_info", "modified_time"},
		fOCSFTime:     {"time"},
		fOCSFAccount:  {"cloud", "account", "uid"},
		fOCSFRegion:   {"cloud", "region"},
		fVersion:      {"SchemaVersion"},
	}
	for i, p := range paths {
		paths[i] = append(append([]string(nil), at...), p...)
	}
	return paths
}

// The slots of the values that are read from an event of Security Hub.
const (
	shID = iota
	shDetailType
	shAccount
	shRegion
	shFindings
	shInside = 5                  // a finding in its envelope
	shBare   = shInside + fSlots  // a finding by itself
	shTime   = shBare + fOCSFTime // both have the same name
)

func openSecurityHub(_ SecurityHubConfig, _ Deps) (Format, error) {
	paths := [][]string{
		shID:         {"id"},
		shDetailType: {"detail-type"},
		shAccount:    {"account"},
		shRegion:     {"region"},
		shFindings:   {"detail", "findings"},
	}
	paths = append(append(paths, findingPaths("detail", "findings", firstOf)...), findingPaths()...)
	return Format{
		New: func() Decoder {
			s := &securityHub{newObjectReader("Security Hub event", paths...)}
			s.versions = newVersion(isFindingVersion)
			return s
		},
		Base: securityHubBase, Table: securityHubTable,
	}, nil
}

// securityHub decodes what Security Hub sends to EventBridge, a finding an event,
// and findings by themselves. All have the type cloud.aws.securityhub.findings.
//
//   - id of a finding: Id, UpdatedAt and ProductArn: a finding is updated in place,
//     and its Id is that of a product. Of a custom action the id of the event, too,
//     because a person may send a finding again on purpose. Findings in OCSF have
//     finding_info.uid, the time of their last change and metadata.product.uid.
//     What holds no finding (insight results), or several after all, has the id of
//     the event.
//   - time: UpdatedAt, or when an OCSF finding was modified; else the event's.
//   - account: of the finding, which in an account that collects those of others is
//     not the event's.
//   - region: of the finding, else of its ProductArn, else the event's.
//
// Source: formats F-8; AWS Security Hub User Guide, EventBridge event formats, AWS
// Security Finding Format; OCSF, finding_info and metadata.
type securityHub struct {
	objectReader
}

// kindSecurityHub begins the ids of findings, however they arrive.
var kindSecurityHub = []byte("securityhub")

// Decode implements Decoder.
func (s *securityHub) Decode(rec []byte, d *Doc) error {
	if err := s.object(rec, d); err != nil {
		return err
	}
	d.Type = securityHubTable
	switch {
	case s.has(shBare+fID) || s.has(shBare+fUID):
		s.finding(rec, d, shBare, -1)
	case onlyOne(rec, &s.scan.found[shFindings]):
		d.Account, d.Region = s.account(rec, shAccount), s.region(rec, shRegion)
		s.finding(rec, d, shInside, s.action(rec, shDetailType, shID))
		s.otherwise(rec, d, shTime)
	default:
		d.Account, d.Region = s.account(rec, shAccount), s.region(rec, shRegion)
		s.identify(rec, d, kindEventBridge, shID)
		s.time(rec, d, shTime)
	}
	return nil
}

// otherwise reads the time of the event for a finding that does not tell one.
func (o *objectReader) otherwise(rec []byte, d *Doc, slot int) {
	if !d.HasTime {
		d.Time, d.HasTime = parseTime(o.scan.textAt(rec, slot))
	}
}

// action returns the slot of the event's id where the detail-type says that a
// person has sent it, else -1.
func (o *objectReader) action(rec []byte, detailType, id int) int {
	if o.is(rec, detailType, "Security Hub Findings - Custom Action") {
		return id
	}
	return -1
}

// finding reads the finding whose slots begin at at. What it does not tell stays in
// d as it is. extra is the slot of one more part of the id, -1 for none.
func (o *objectReader) finding(rec []byte, d *Doc, at, extra int) {
	slots := [...]int{at + fID, at + fUpdated, at + fProduct, extra}
	account, region := at+fAccount, at+fRegion
	switch {
	case o.has(at + fID):
		o.time(rec, d, at+fUpdated)
	default:
		slots = [...]int{at + fUID, o.first(at+fModified, at+fModifiedText, at+fOCSFTime), at + fOCSFProduct, extra}
		account, region = at+fOCSFAccount, at+fOCSFRegion
		if o.has(at + fModifiedText) {
			o.time(rec, d, at+fModifiedText)
		} else {
			o.epoch(rec, d, o.first(at+fModified, at+fOCSFTime), digitsBelow[Milliseconds])
		}
	}
	n := len(slots)
	if extra < 0 {
		n--
	}
	o.identify(rec, d, kindSecurityHub, slots[:n]...)
	if name := o.account(rec, account); name != "" {
		d.Account = name
	}
	outer := d.Region
	if d.Region = o.region(rec, region); d.Region == "" {
		o.productRegion(rec, d, at+fProduct)
	}
	if d.Region == "" {
		d.Region = outer
	}
	o.version(rec, d, at+fVersion)
}

// isFindingVersion tells whether a SchemaVersion of findings is known.
// Source: AWS Security Hub User Guide, AWS Security Finding Format.
func isFindingVersion(version []byte) bool { return string(version) == "2018-10-08" }

// productRegion reads the region off a ProductArn. Its account is that of the
// product's maker, not the one of the finding.
func (o *objectReader) productRegion(rec []byte, d *Doc, slot int) {
	account := d.Account
	o.arn(rec, d, slot)
	d.Account = account
}
