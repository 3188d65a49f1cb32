package SyTest::HomeserverFactory::Sotto;

# Makes the servers of a run.

use strict;
use warnings;

use base qw( SyTest::HomeserverFactory );

require SyTest::Homeserver::Sotto;

sub _init
{
   my ( $self, $params ) = @_;
   $self->{args} = { binary => undef, database => undef, default_room_version => "10" };
   $self->SUPER::_init( $params );
}

# The suite knows two names. "synapse" chooses the variants that follow the
# specification; tests of Synapse's own admin API are among the expected
# failures.
sub implementation_name { "synapse" }

sub get_options
{
   my $self = shift;
   return (
      'binary=s'               => \$self->{args}{binary},
      'database=s'             => \$self->{args}{database},
      'default-room-version=s' => \$self->{args}{default_room_version},
      $self->SUPER::get_options(),
   );
}

sub print_usage
{
   print STDERR <<'EOF';
       --binary PATH                - the sotto to test
       --database URL               - a PostgreSQL server, postgres://…; each
                                      server under test gets its own database
                                      on it. SQLite if not given
       --default-room-version VER   - at most 10: the suite's own side of the
                                      federation redacts as older versions do
EOF
}

sub create_server
{
   my ( $self, %params ) = @_;
   defined $self->{args}{binary} or die "--binary is required\n";
   return SyTest::Homeserver::Sotto->new( %params, %{ $self->{args} } );
}

1;
