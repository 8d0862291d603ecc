package ocsf

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// schemaObjects are the attributes of the objects that are used, with their types. !
// marks what is required; of what has ? one must be there. A type in [] is a list.
// Source: schema.ocsf.io/1.5.0/objects.
var schemaObjects = map[string]string{
	"account":                 "name:string? uid:string? type:string type_id:integer",
	"actor":                   "idp:idp invoked_by:string? session:session? user:user?",
	"api":                     "operation:string! request:request response:response service:service version:string",
	"cloud":                   "account:account provider:string! region:string zone:string",
	"dns_answer":              "class:string rdata:string! type:string",
	"dns_query":               "class:string hostname:string! type:string",
	"evidences":               "api:api? src_endpoint:network_endpoint? dst_endpoint:network_endpoint? query:dns_query?",
	"feature":                 "name:string? uid:string?",
	"finding_info":            "created_time:time desc:string first_seen_time:time last_seen_time:time modified_time:time src_url:string title:string types:[string] uid:string! uid_alt:string",
	"firewall_rule":           "condition:string match_details:[string] match_location:string name:string? rate_limit:integer sensitivity:string type:string uid:string?",
	"http_header":             "name:string! value:string",
	"http_request":            "args:string http_headers:[http_header] http_method:string referrer:string uid:string url:url user_agent:string version:string x_forwarded_for:[ip]",
	"http_response":           "code:integer! content_type:string length:integer",
	"idp":                     "name:string? uid:string?",
	"load_balancer":           "name:string? uid:string?",
	"location":                "country:string",
	"metadata":                "event_code:string labels:[string] log_version:string original_time:string processed_time:time product:product! profiles:[string] uid:string version:string!",
	"network_connection_info": "boundary:string boundary_id:integer direction:string direction_id:integer! protocol_name:string protocol_num:integer protocol_ver:string protocol_ver_id:integer tcp_flags:integer",
	"network_endpoint":        "domain:string? hostname:string? instance_uid:string? interface_uid:string? intermediate_ips:[ip] ip:ip? location:location port:port subnet_uid:string svc_name:string? uid:string? vpc_uid:string",
	"network_traffic":         "bytes:integer bytes_in:integer bytes_out:integer packets:integer",
	"observable":              "name:string! type:string type_id:integer! value:string",
	"owner":                   "account:account? name:string? uid:string?",
	"product":                 "feature:feature name:string? uid:string? vendor_name:string version:string",
	"remediation":             "desc:string! references:[string]",
	"request":                 "data:json uid:string!",
	"resource_details":        "cloud_partition:string data:json name:string? owner:owner region:string type:string uid:string?",
	"response":                "data:json error:string message:string",
	"service":                 "name:string? uid:string?",
	"session":                 "created_time:time credential_uid:string is_mfa:boolean issuer:string uid:string uid_alt:string",
	"tls":                     "cipher:string sni:string version:string!",
	"url":                     "hostname:string path:string? query_string:string scheme:string url_string:string?",
	"user":                    "account:account? credential_uid:string name:string? type:string uid:string? uid_alt:string",
}

// schemaBase are the attributes of every class, with those of the profile cloud.
const schemaBase = "activity_id:integer! activity_name:string category_name:string category_uid:integer! class_name:string class_uid:integer! cloud:cloud! count:integer " +
	"metadata:metadata! observables:[observable] raw_data:string severity:string severity_id:integer! status:string status_code:string status_detail:string status_id:integer " +
	"start_time:time end_time:time time:time! type_name:string type_uid:integer! unmapped:object "

// schemaControl are those of the profile security_control.
const schemaControl = "action:string action_id:integer disposition:string disposition_id:integer firewall_rule:firewall_rule is_alert:boolean "

// schemaClasses are the attributes of the classes, by class_uid.
// Source: schema.ocsf.io/1.5.0/classes.
var schemaClasses = map[int]string{
	0:    schemaBase,
	2004: schemaBase + "confidence_score:integer evidences:[evidences] finding_info:finding_info! is_alert:boolean remediation:remediation resources:[resource_details]",
	3002: schemaBase + "actor:actor api:api dst_endpoint:network_endpoint? http_request:http_request is_mfa:boolean service:service? session:session src_endpoint:network_endpoint user:user!",
	4001: schemaBase + schemaControl + "connection_info:network_connection_info dst_endpoint:network_endpoint? src_endpoint:network_endpoint? traffic:network_traffic",
	4002: schemaBase + schemaControl + "dst_endpoint:network_endpoint? src_endpoint:network_endpoint? http_request:http_request http_response:http_response load_balancer:load_balancer tls:tls traffic:network_traffic",
	4003: schemaBase + schemaControl + "answers:[dns_answer] connection_info:network_connection_info dst_endpoint:network_endpoint? src_endpoint:network_endpoint? query:dns_query rcode:string rcode_id:integer",
	6003: schemaBase + "actor:actor! api:api! http_request:http_request http_response:http_response resources:[resource_details] src_endpoint:network_endpoint!",
}

// checkSchema returns what in an event is not as the schema says.
func checkSchema(event []byte) []string {
	d := json.NewDecoder(bytes.NewReader(event))
	d.UseNumber()
	var v map[string]any
	if err := d.Decode(&v); err != nil {
		return []string{err.Error()}
	}
	number := func(key string) int {
		n, _ := v[key].(json.Number)
		i, _ := n.Int64()
		return int(i)
	}
	class := number("class_uid")
	attributes, ok := schemaClasses[class]
	if !ok {
		return []string{fmt.Sprintf("there is no class %d", class)}
	}
	bad := checkObject("", attributes, v)
	if number("type_uid") != 100*class+number("activity_id") || number("category_uid") != class/1000 {
		bad = append(bad, "type_uid or category_uid does not fit the class")
	}
	for _, c := range classes {
		if c.uid == class && c.activities[number("activity_id")] == "" {
			bad = append(bad, fmt.Sprintf("activity_id %d is not one of the class", number("activity_id")))
		}
	}
	return bad
}

func checkObject(at, attributes string, v map[string]any) (bad []string) {
	some, has := false, false
	known := map[string]string{}
	for _, a := range strings.Fields(attributes) {
		name, typ, _ := strings.Cut(a, ":")
		_, there := v[name]
		if plain, required := strings.CutSuffix(typ, "!"); required {
			if typ = plain; !there {
				bad = append(bad, at+name+" is required")
			}
		}
		if plain, one := strings.CutSuffix(typ, "?"); one {
			typ, some = plain, true
			has = has || there
		}
		known[name] = typ
	}
	if some && !has {
		bad = append(bad, at+": one of those with ? is required")
	}
	for _, name := range slices.Sorted(maps.Keys(v)) {
		typ, ok := known[name]
		if !ok {
			bad = append(bad, at+name+" is not in the schema")
			continue
		}
		bad = append(bad, checkValue(at+name, typ, v[name])...)
	}
	return bad
}

func checkValue(at, typ string, v any) (bad []string) {
	ok := true
	switch typ {
	case "json":
	case "string":
		s, is := v.(string)
		ok = is && s != ""
	case "ip":
		s, _ := v.(string)
		_, err := netip.ParseAddr(s)
		ok = err == nil
	case "integer", "time", "port":
		n, is := v.(json.Number)
		i, err := n.Int64()
		ok = is && err == nil && (typ != "port" || i >= 0 && i <= 65535)
	case "boolean":
		_, ok = v.(bool)
	case "object":
		_, ok = v.(map[string]any)
	default:
		if inner, list := strings.CutPrefix(typ, "["); list {
			all, is := v.([]any)
			if ok = is && len(all) > 0; ok {
				for i, e := range all {
					bad = append(bad, checkValue(fmt.Sprintf("%s[%d]", at, i), strings.TrimSuffix(inner, "]"), e)...)
				}
			}
			break
		}
		object, is := v.(map[string]any)
		if ok = is; ok {
			bad = checkObject(at+".", schemaObjects[typ], object)
		}
	}
	if !ok {
		bad = append(bad, fmt.Sprintf("%s is no %s: %v", at, typ, v))
	}
	return bad
}
