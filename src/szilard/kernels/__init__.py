"""The fast paths behind the measures, chosen by device. Not a public interface."""
