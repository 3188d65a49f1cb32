package SyTest::Output::Sotto;

# TAP, and the name of each file of tests with it.

use strict;
use warnings;

use base qw( SyTest::Output::TAP );

use constant FORMAT => "sotto";

sub run_file
{
   my ( $class, $file ) = @_;
   print "# file: $file\n";
   $class->SUPER::run_file( $file );
}

1;
