package SyTest::Homeserver::Sotto;

# One sotto: its configuration, its process.

use strict;
use warnings;

use base qw( SyTest::Homeserver );

use Cwd qw( getcwd );
use File::Path qw( remove_tree );

use SyTest::SSL qw( ensure_ssl_key create_ssl_cert );

sub _init
{
   my ( $self, $args ) = @_;

   $self->{$_} = delete $args->{$_} for qw( binary database default_room_version );
   $self->SUPER::_init( $args );

   $self->{port}       = main::alloc_port( "homeserver[$self->{hs_index}]" );
   $self->{plain_port} = main::alloc_port( "homeserver[$self->{hs_index}] without TLS" );
}

# Clients and servers come to the same port, with TLS.
sub server_name     { "$_[0]{bind_host}:$_[0]{port}" }
sub federation_host { $_[0]{bind_host} }
sub federation_port { $_[0]{port} }
sub public_baseurl  { "https://$_[0]{bind_host}:$_[0]{port}" }

sub start
{
   my $self = shift;
   my $dir = $self->{hs_dir};

   # Tests register fixed names: every run starts from nothing.
   remove_tree( "$dir/data" );

   ensure_ssl_key( "$dir/tls.key" );
   create_ssl_cert( "$dir/tls.crt", "$dir/tls.key", $self->{bind_host} );

   my $config = $self->write_file( "sotto.toml", $self->_config );

   my %env = map { defined $ENV{$_} ? ( $_ => $ENV{$_} ) : () } qw( PATH HOME RUST_BACKTRACE );
   $env{RUST_LOG} = $ENV{RUST_LOG} // "info,ruma_state_res=error,sqlx=warn";

   return $self->_start_process_and_await_connectable(
      name         => "sotto-$self->{hs_index}",
      setup        => [ env => \%env ],
      # `exec`: the suite stops the server by the id of this process.
      command      => [ "sh", "-c", 'exec "$0" serve --config "$1" 2>"$2"',
                        $self->{binary}, $config, "$dir/sotto.log" ],
      connect_host => $self->{bind_host},
      connect_port => $self->{port},
   );
}

sub _config
{
   my $self = shift;
   my $dir = $self->{hs_dir};

   my @lines = (
      _setting( server_name                => $self->server_name ),
      _setting( data_dir                   => "$dir/data" ),
      _setting( listen                     => "$self->{bind_host}:$self->{plain_port}" ),
      _setting( public_base_url            => $self->public_baseurl ),
      _setting( registration               => "open" ),
      _setting( registration_shared_secret => "reg_secret" ),
      _setting( default_room_version       => $self->{default_room_version} ),
      "guests = true",
      _list( appservices => @{ $self->{app_service_config_files} // [] } ),
      $self->{recaptcha_config} ? $self->_captcha : (),
      $self->{cas_config} ? $self->_cas : (),
      "previews = { enabled = true }",
      "rate_limits = { enabled = false }",
      $self->{smtp_server_config} ? $self->_email : (),
      defined $self->{database} ? _setting( database => $self->_fresh_database ) : (),
      "",
      "[federation]",
      _setting( listen      => $self->server_name ),
      _setting( certificate => "$dir/tls.crt" ),
      _setting( private_key => "$dir/tls.key" ),
      _setting( ca_file     => getcwd . "/keys/ca.crt" ),
      'allow_networks = ["127.0.0.0/8"]',
   );
   return join "", map { "$_\n" } @lines;
}

# A test solves a captcha that nobody asked it to.
sub _captcha
{
   my $self = shift;
   my $captcha = $self->{recaptcha_config};
   return qq(captcha = { public_key = "public", private_key = "$captcha->{private_key}", )
      . qq(verify_url = "$captcha->{siteverify_api}", required = false });
}

# Users of the suite's CAS server have accounts already.
sub _cas
{
   my $self = shift;
   return qq(cas = { server_url = "$self->{cas_config}{server_url}", claim_accounts = true });
}

# The suite's mail server speaks plain SMTP.
sub _email
{
   my $self = shift;
   my $smtp = $self->{smtp_server_config};
   return qq(email = { smtp = "$smtp->{host}:$smtp->{port}", from = "noreply\@sotto.test", encryption = "none" });
}

# A string in TOML.
sub _setting
{
   my ( $key, $value ) = @_;
   $value =~ s/([\\"])/\\$1/g;
   return qq($key = "$value");
}

# A list of strings in TOML.
sub _list
{
   my ( $key, @values ) = @_;
   return "$key = [" . join( ", ", map { "'$_'" } @values ) . "]";
}

# Empties the database of this server; its URL.
sub _fresh_database
{
   my $self = shift;
   my $name = "sytest_$self->{port}";

   require DBI;
   my ( $user, $password, $host, $port ) =
      $self->{database} =~ m{^postgres(?:ql)?://(?:([^:@/]+)(?::([^@/]*))?@)?([^:/]+)(?::(\d+))?}
      or die "--database is not postgres://USER:PASSWORD\@HOST:PORT\n";
   my $db = DBI->connect( "dbi:Pg:dbname=postgres;host=$host;port=" . ( $port // 5432 ),
      $user, $password, { RaiseError => 1, PrintWarn => 0 } );
   $db->do( "SET client_min_messages TO WARNING" );
   $db->do( "DROP DATABASE IF EXISTS $name WITH (FORCE)" );
   $db->do( "CREATE DATABASE $name TEMPLATE template0 ENCODING 'UTF8'" );
   $db->disconnect;

   ( my $url = $self->{database} ) =~ s{^(postgres(?:ql)?://[^/]+).*}{$1/$name};
   return $url;
}

1;
