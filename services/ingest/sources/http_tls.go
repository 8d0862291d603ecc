package sources

import "github.com/penstock/penstock/messages/fault"

var errHTTPCertificate = fault.Define("ingest.http_certificate", fault.Stop,
	"correct the files named under tls of the source: PEM, a key that belongs to the certificate, readable by the user that penstock runs as")
