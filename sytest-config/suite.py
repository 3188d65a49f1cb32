"""Starting the suite."""

import os
import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parent

# Debian package by Perl module, as far as the suite itself asks for them.
PACKAGES = {
    "Class::Method::Modifiers": "libclass-method-modifiers-perl",
    "Crypt::PK::Ed25519": "libcryptx-perl",
    "Data::Dump": "libdata-dump-perl",
    "Digest::HMAC_SHA1": "libdigest-hmac-perl",
    "Email::Address::XS": "libemail-address-xs-perl",
    "Email::MIME": "libemail-mime-perl",
    "File::Slurper": "libfile-slurper-perl",
    "Future": "libfuture-perl",
    "HTTP::Message": "libhttp-message-perl",
    "IO::Async": "libio-async-perl",
    "IO::Async::SSL": "libio-async-ssl-perl",
    "IO::Socket::IP": "libio-socket-ip-perl",
    "IO::Socket::SSL": "libio-socket-ssl-perl",
    "JSON": "libjson-perl",
    "JSON::XS": "libjson-xs-perl",
    "List::UtilsBy": "liblist-utilsby-perl",
    "Module::Pluggable": "libmodule-pluggable-perl",
    "Net::Async::HTTP": "libnet-async-http-perl",
    "Net::SSLeay": "libnet-ssleay-perl",
    "Struct::Dumb": "libstruct-dumb-perl",
    "URI": "liburi-perl",
    "YAML::XS": "libyaml-libyaml-perl",
}
FOR_POSTGRESQL = {"DBI": "libdbi-perl", "DBD::Pg": "libdbd-pg-perl"}


def missing(postgresql):
    """The Debian packages that have to be installed first."""
    if not shutil.which("perl"):
        return ["perl", "openssl", *PACKAGES.values()]
    wanted = PACKAGES | (FOR_POSTGRESQL if postgresql else {})
    code = "for (@ARGV) { (my $file = $_) =~ s{::}{/}g; eval { require qq($file.pm) } or print qq($_\\n) }"
    answer = subprocess.run(["perl", "-e", code, *wanted], capture_output=True, text=True, check=True)
    packages = {wanted[name] for name in answer.stdout.split()}
    if not shutil.which("openssl"):
        packages.add("openssl")
    return sorted(packages)


def overlay(checkout, work):
    """The checkout with our own tests in it, made of links: the checkout stays as it is."""
    overlay = work / "suite"
    shutil.rmtree(overlay, ignore_errors=True)
    (overlay / "tests" / "10apidoc").mkdir(parents=True)
    for folder in [Path(), Path("tests"), Path("tests/10apidoc")]:
        for entry in (checkout / folder).iterdir():
            target = overlay / folder / entry.name
            if not target.exists():
                target.symlink_to(entry)
    for test in (HERE / "tests").iterdir():
        (overlay / "tests" / "10apidoc" / test.name).symlink_to(test)
    certify_identity_server(overlay)
    return overlay


def certify_identity_server(overlay):
    """Gives the suite's identity server a certificate of the suite's authority. Its own is from before
    certificates had to name servers as alternative names, and no verifier of today accepts it."""
    keys, name = overlay / "keys", "tls-selfsigned"
    originals = list(keys.resolve().iterdir())
    keys.unlink()
    keys.mkdir()
    for original in originals:
        if original.name != f"{name}.crt":
            (keys / original.name).symlink_to(original)
    extensions = keys / f"{name}.ext"
    extensions.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\nbasicConstraints=CA:FALSE\n")
    request = ["openssl", "req", "-new", "-key", f"{name}.key", "-subj", "/CN=localhost"]
    request = subprocess.run(request, cwd=keys, capture_output=True, check=True).stdout
    sign = ["openssl", "x509", "-req", "-CA", "ca.crt", "-CAkey", "ca.key", "-set_serial", "2", "-days", "365",
            "-extfile", extensions.name, "-out", f"{name}.crt"]  # fmt: skip
    subprocess.run(sign, cwd=keys, input=request, capture_output=True, check=True)


def files(checkout, wanted):
    """The files of tests that are asked for, as the suite names them, in its order."""
    found = sorted(
        str(Path(folder, name).relative_to(checkout))
        for folder, _, names in os.walk(checkout / "tests", followlinks=True)
        for name in names
        if name.endswith(".pl")
    )
    # The first files only define what the others use.
    found = [file for file in found if not file.startswith("tests/0")]
    if not wanted:
        return found
    wanted = [want.rstrip("/") for want in wanted]
    return [file for file in found if any(file == want or file.startswith(want + "/") for want in wanted)]


def start(arguments, checkout, work, files, first_port):
    """Starts the suite on some files; its process."""
    work.mkdir(parents=True, exist_ok=True)
    command = ["perl", f"-I{HERE / 'perl-modules'}", "-Ilib"]
    environment = {**os.environ, "SYTEST_PLUGINS": str(HERE / "plugins")}
    options = []
    if arguments.form == "modern":
        command.append("-MSyTestModern")
        environment["SYTEST_STUB_EVENTS"] = "1"
        options.append("--exclude-deprecated")
    if arguments.database:
        options += ["--database", arguments.database]
    if arguments.verbose:
        options.append("--client-log")
    command += [
        "run-tests.pl", "-I", "Sotto", "--binary", str(arguments.binary.resolve()),
        "--work-directory", str(work.resolve()), "--bind-host", "127.0.0.1",
        "--port-range", f"{first_port}:{first_port + 99}", "-O", "sotto", "--all", *options, *files,
    ]  # fmt: skip
    with open(work / "results.tap", "w") as results, open(work / "suite.log", "w") as log:
        return subprocess.Popen(command, cwd=checkout, env=environment, stdout=results, stderr=log)
