#!/usr/bin/python3
"""Takes mail on a free port of 127.0.0.1, which it prints, until its input ends.

smtp-receiver CERT KEY FOLDER USER PASSWORD

STARTTLS and AUTH are demanded. Each mail becomes a file in FOLDER, before the server
says 250: the envelope as X- headers, then the mail as it came.
"""
import asyncio
import os
import ssl
import sys

from aiosmtpd.smtp import SMTP, AuthResult


class Keep:
    def __init__(self, folder):
        self.folder, self.count = folder, 0

    async def handle_RCPT(self, server, session, envelope, address, options):
        if address.startswith("nobody@"):
            return "550 5.1.1 no such mailbox"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server, session, envelope):
        self.count += 1
        path = os.path.join(self.folder, "%04d.eml" % self.count)
        with open(path + ".part", "wb") as f:
            f.write(("X-From: %s\r\nX-To: %s\r\n" % (envelope.mail_from, " ".join(envelope.rcpt_tos))).encode())
            f.write(envelope.content)
        os.rename(path + ".part", path)
        return "250 OK"


async def main(cert, key, folder, user, password):
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(cert, key)

    def check(server, session, envelope, mechanism, data):
        good = data.login == user.encode() and data.password == password.encode()
        return AuthResult(success=good, handled=good)

    keep = Keep(folder)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: SMTP(keep, hostname="mail.example.org", tls_context=context, require_starttls=True,
                     authenticator=check, auth_required=True, loop=loop),
        "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    server.close()


asyncio.run(main(*sys.argv[1:]))
