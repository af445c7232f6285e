# Hashes, regular expressions, sorting, numbers, packing.
use strict;
my (%count, $sum);
$count{ ($_ * 7919) % 5003 } .= $_ % 7 for 1 .. 60000;
$sum = 7;
$sum = ($sum * 31 + length $count{$_}) % 1000003 for sort keys %count;
print "hash $sum\n";
my $text = join " ", map { sprintf "%x-%s", $_ * 2654435761 % 4294967296, "ab" x ($_ % 4) } 1 .. 8000;
my ($n, $l) = (0, 0);
while ($text =~ /([0-9a-f]+)-((?:ab)+)/g) { $n++; $l += length($1) * length $2 }
(my $changed = $text) =~ s/(\w)(\w)/$2$1/g;
print "regular $n $l ", unpack("%32C*", $changed), "\n";
my $float = 0;
$float = $float * 0.99 + sin($_) * sqrt($_) / exp($_ % 5) + $_ ** 0.3 for 1 .. 50000;
printf "float %.17g %s %s\n", $float, 1e15 / 7, 0.1 + 0.2;
my @sorted = sort { $a->[1] <=> $b->[1] || $a->[0] cmp $b->[0] } map { [$_, $_ * 48271 % 65537] } 1 .. 20000;
print "sort $sorted[0][0] $sorted[777][0] $sorted[-1][0]\n";
print "pack ", unpack("H*", pack("NvQ>fd<w", 1, 2, 3, 4.5, -6.25, 700)), "\n";
