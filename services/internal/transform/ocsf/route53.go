package ocsf

func init() {
	define(mapping{
		formats: []string{"route53resolver"}, product: "Route 53", profiles: []string{"cloud", "security_control"},
		fields: []field{
			{to: "metadata.product.version", from: "version"},
			{to: "metadata.original_time", from: "query_timestamp"},
			{to: "cloud.account.uid", from: "account_id"},
			{to: "cloud.region", from: "region"},
			{to: "src_endpoint.vpc_uid", from: "vpc_id"},
			{to: "src_endpoint.ip", from: "srcaddr", as: address},
			{to: "src_endpoint.port", from: "srcport", as: port},
			{to: "src_endpoint.instance_uid", from: "srcids.instance"},
			{to: "dst_endpoint.instance_uid", from: "srcids.resolver_endpoint"},
			{to: "dst_endpoint.interface_uid", from: "srcids.resolver_network_interface"},
			{to: "query.hostname", from: "query_name"},
			{to: "query.type", from: "query_type"},
			{to: "query.class", from: "query_class"},
			{to: "connection_info.protocol_name", from: "transport"},
			{to: "firewall_rule.uid", from: "firewall_rule_group_id"},
			{to: "answers", from: "answers", need: []string{"rdata"}, each: []field{{to: "class", from: "Class"}, {to: "rdata", from: "Rdata"}, {to: "type", from: "Type"}}},
			{from: "rcode", as: taking},
			{from: "firewall_rule_action", as: taking},
		},
		sets:   []string{"action", "action_id", "connection_info.direction", "connection_info.direction_id", "disposition", "disposition_id", "is_alert", "metadata.product.feature.name", "rcode", "rcode_id"},
		finish: finishQuery,
	})
}

// rcodes are the response codes with their captions in the schema.
// Source: RFC 6895, section 2.3.
var rcodes = map[string]struct {
	id      int
	caption string
}{
	"NOERROR": {0, "NoError"}, "FORMERR": {1, "FormError"}, "SERVFAIL": {2, "ServError"}, "NXDOMAIN": {3, "NXDomain"}, "NOTIMP": {4, "NotImp"},
	"REFUSED": {5, "Refused"}, "YXDOMAIN": {6, "YXDomain"}, "YXRRSET": {7, "YXRRSet"}, "NXRRSET": {8, "NXRRSet"}, "NOTAUTH": {9, "NotAuth"}, "NOTZONE": {10, "NotZone"},
}

// finishQuery makes DNS Activity: a query with its answer.
//
// Source: Amazon Route 53 Developer Guide, resolver query logs.
func finishQuery(r *record) {
	r.setText("metadata.product.feature.name", "Resolver Query Logs")
	r.as(dnsActivity, 6)
	r.setCaption("connection_info.direction_id", "connection_info.direction", 0, "Unknown")
	if code := r.text("rcode"); code != "" {
		if known, ok := rcodes[code]; ok {
			r.setCaption("rcode_id", "rcode", known.id, known.caption)
		} else {
			r.setCaption("rcode_id", "rcode", other, code)
		}
	}
	switch action := r.text("firewall_rule_action"); action {
	case "":
	case "ALLOW":
		setAction(r, 1, "Allowed", 1, "Allowed")
	case "ALERT":
		setAction(r, 3, "Observed", 19, "Alert")
		r.set("is_alert", []byte("true"))
	case "BLOCK":
		setAction(r, 2, "Denied", 2, "Blocked")
	default:
		setAction(r, other, action, other, action)
	}
}
